"""The part of tests/loaders in Python; see there.

With a folder (and parts of names of layouts, where not all are wanted) it makes the layouts and the table; with
--vllm MODEL, --parser MODEL... and --mlx MODEL it runs in the environments of those, and prints JSON as its last line.
"""

import json
import os
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).parents[2]
TINY_LLAMA = REPOSITORY / "tests" / "data" / "tiny-llama"
PROMPT = "There he found occupation for an idle hour, and consolation in a distressed one; there his faculties were"
TOKENS = [256, *PROMPT.encode()]
DOWN = r"layers\.1\.mlp\.down_proj"
# Name → options, and the programs that should load it. vLLM's CPU engine has no kernels for 8-bit weights with float
# inputs: "Failed to find a kernel that can implement the WNA16 linear layer" and "Marlin does not support uint8b128".
LAYOUTS = {
    "ct w4a16 g128": (["--bits", 4], "vllm"),
    "ct w4a16 g32": (["--bits", 4, "--group-size", 32], "vllm"),
    "ct w4a16 mse": (["--bits", 4, "--observer", "mse"], "vllm"),
    "ct w4a16 asymmetric g128": (["--bits", 4, "--scheme", "asymmetric"], "vllm"),
    "ct w4a16, a kept module": (["--bits", 4, "--exclude", DOWN], "vllm"),
    "ct w4a16, mixed groups": (["--bits", 4, "--override", f"{DOWN}=group-size=32"], "vllm"),
    "ct w8a16 channel": (["--preset", "w8a16"], ""),
    "ct w8a8 dynamic": (["--bits", 8], "vllm"),
    "ct w8a8 static": (["--bits", 8, "--calibration", "CALIBRATION"], "vllm"),
    "gptq 4 bit g128": (["--bits", 4, "--format", "gptq"], "vllm"),
    "gptq 4 bit g32": (["--bits", 4, "--group-size", 32, "--format", "gptq"], "vllm"),
    "gptq 4 bit channel": (["--bits", 4, "--strategy", "channel", "--format", "gptq"], "vllm"),
    "gptq 4 bit mse": (["--bits", 4, "--observer", "mse", "--format", "gptq"], "vllm"),
    "gptq 8 bit g128": (["--bits", 8, "--group-size", 128, "--format", "gptq"], ""),
    "gptq 4 bit, a kept module": (["--bits", 4, "--exclude", DOWN, "--format", "gptq"], "vllm"),
    "gptq 4 bit, mixed groups": (["--bits", 4, "--override", f"{DOWN}=group-size=32", "--format", "gptq"], "vllm"),
    "awq g128": (["--bits", 4, "--format", "awq"], "vllm mlx"),
    "awq g32": (["--bits", 4, "--group-size", 32, "--format", "awq"], "vllm mlx"),
    "awq symmetric g128": (["--bits", 4, "--scheme", "symmetric", "--format", "awq"], "vllm mlx"),
    "awq, a kept module": (["--bits", 4, "--exclude", DOWN, "--format", "awq"], "vllm mlx"),
}


def in_vllm(model):
    """Logits after the prompt, in bf16."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams, __version__

    llm = LLM(
        model=model,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=1,
        skip_tokenizer_init=True,
        max_logprobs=320,
        logprobs_mode="raw_logits",
    )
    params = SamplingParams(max_tokens=1, logprobs=320, detokenize=False)
    answer = llm.generate({"prompt_token_ids": TOKENS}, params, use_tqdm=False)[0].outputs[0].logprobs[0]
    return {"version": __version__, "logits": [answer[token].logprob for token in range(320)]}


def in_mlx(model):
    """Logits after the prompt, in the dtype that mlx-lm takes."""
    import importlib.metadata

    import mlx.core as mx
    from mlx_lm.utils import load_model

    loaded, _ = load_model(pathlib.Path(model))
    logits = loaded(mx.array([TOKENS]))[0, -1].astype(mx.float32)
    return {"version": importlib.metadata.version("mlx-lm"), "logits": logits.tolist()}


def in_parser(*models):
    """What vLLM's classes of configs say to each."""
    sys.path.insert(0, str(REPOSITORY / "target" / "loaders" / "vllm-0.33.0"))
    from vllm.model_executor.layers.quantization import get_quantization_config
    from vllm.version import __version__

    said = {}
    for model in models:
        config = json.loads((pathlib.Path(model) / "config.json").read_text())["quantization_config"]
        try:
            parsed = get_quantization_config(config["quant_method"]).from_config(config)
            said[model] = f"{type(parsed).__name__}"
        except Exception as error:
            said[model] = f"{type(error).__name__}: {error}"[:100]
    return {"version": __version__, "said": said}


def run(here, environment, *args):
    """Runs this file in an environment; its answer, or the last line of what it said."""
    python = pathlib.Path(here) / environment / "bin" / "python"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, __file__, *map(str, args)], capture_output=True, text=True, env=variables)
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    (pathlib.Path(here) / "last-error.txt").write_text(done.stdout + done.stderr)
    errors = [line for line in done.stderr.splitlines() if "Error" in line]
    return {"version": "", "error": (errors or ["?"])[-1].strip()[:160]}


def calibrate(here):
    """Statistics of tiny-llama's inputs, by the command that records them."""
    import torch
    from transformers import AutoModelForCausalLM

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = AutoModelForCausalLM.from_pretrained(TINY_LLAMA, dtype=torch.float32).model

        def forward(self, tokens):
            return self.model(tokens, use_cache=False).last_hidden_state

    tokens = torch.tensor([TOKENS[:96]])
    torch.save([tokens], here / "samples.pt")
    torch.export.save(torch.export.export(Logits().eval(), (tokens,)), here / "program.pt2")
    statistics = here / "statistics.json"
    statistics.unlink(missing_ok=True)
    command = [sys.executable, "-m", "mono_quant", "calibrate", "--program", here / "program.pt2"]
    subprocess.run([*command, "--data", here / "samples.pt", "-o", statistics], check=True)
    return statistics


def main(here):
    import torch
    from helpers import dequantize, monoquant, relative_error
    from transformers import AutoModelForCausalLM

    @torch.no_grad()
    def expected(model):
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        return loaded(torch.tensor([TOKENS])).logits[0, -1]

    here = pathlib.Path(here).resolve()
    (here / "models").mkdir(exist_ok=True)
    only = sys.argv[2:]
    rows, made = [], {}

    def row(loader, answer, layout, dense):
        if "logits" in answer:
            error = relative_error(torch.tensor(answer["logits"]), expected(dense))
            result = "right" if error < 0.05 else "WRONG"
            rows.append((loader, answer["version"], layout, result, f"{error:.4f}"))
        else:
            rows.append((loader, answer["version"], layout, "does not load", answer["error"]))
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)

    if not only:
        row("vllm-cpu", run(here, "vllm-cpu", "--vllm", TINY_LLAMA), "original, bf16", TINY_LLAMA)
    for name, (options, loaders) in LAYOUTS.items():
        if only and not any(part in name for part in only):
            continue
        output = here / "models" / "".join(c if c.isalnum() else "-" for c in name)
        options = [calibrate(here) if option == "CALIBRATION" else option for option in options]
        monoquant("quantize", "--quiet", "--force", "-m", TINY_LLAMA, "-o", output, *options)
        dense = dequantize(output, f"{output}-dense", "--force", "--dtype", "f32")
        made[str(output)] = name
        if "vllm" in loaders:
            row("vllm-cpu", run(here, "vllm-cpu", "--vllm", output), name, dense)
        if "mlx" in loaders:
            row("mlx-lm", run(here, "mlx", "--mlx", output), name, dense)
    answer = run(here, "vllm-cpu", "--parser", *made)
    for model, name in made.items():
        said = answer.get("said", {}).get(model, answer.get("error"))
        rows.append(("vllm's parser", answer["version"], name, said, ""))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in [("loader", "version", "layout", "result", "relative error of logits"), *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")


if __name__ == "__main__":
    parts = {"--vllm": in_vllm, "--mlx": in_mlx, "--parser": in_parser}
    if sys.argv[1] in parts:
        print(json.dumps(parts[sys.argv[1]](*sys.argv[2:])))
    else:
        main(sys.argv[1])
