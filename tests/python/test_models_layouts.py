"""GPTQ and AWQ of architectures that store weights in ways of their own: what transformers cannot load is said beforehand,
what is not said loads; all comes back."""

import pytest
import torch
from helpers import compare, dequantize, quantize, relative_error, tensors
from test_models import MODELS, logits
from test_models import load as load_dense
from test_models import saved as saved  # a fixture
from transformers import AwqConfig, GPTQConfig

STACKED = "runs random ones without an error"
SAID = {
    ("gpt2", "gptq"): "GPT-2's Conv1D", ("gpt2", "awq"): "GPT-2's Conv1D",
    ("t5", "gptq"): "of text decoders only", ("bert", "gptq"): "of text decoders only",
    ("vit", "gptq"): "of text decoders only", ("t5", "awq"): "reads the weight of wo itself",
} | {(name, layout): STACKED for name in ("mixtral", "qwen3_moe", "llama4", "gpt_oss") for layout in ("gptq", "awq")}  # fmt: skip
layouts = pytest.mark.parametrize("layout", ["gptq", "awq"])
every = pytest.mark.parametrize("name", MODELS)


def quantized(name, layout, saved, tmp_path):
    return quantize(saved(name), tmp_path / "q", "--bits", 4, "--group-size", 32, "--format", layout,
                    "--on-mismatch", "keep")  # fmt: skip


@every
@layouts
def test_all_comes_back(name, layout, saved, tmp_path):
    report = quantized(name, layout, saved, tmp_path)
    dequantize(tmp_path / "q", tmp_path / "d")
    before, after = tensors(saved(name)), tensors(tmp_path / "d")
    assert {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}
    layers = [entry for entry in report["tensors"] if "scheme" in entry]
    assert len(layers) >= 8 and all(19.0 < entry["sqnr_db"] < 22.5 for entry in layers)
    for other in ("q", "d"):
        compared = compare(saved(name), tmp_path / other)
        assert compared["only"] == [[], []] and compared["unlike"] == []
        assert all(d["sqnr_db"] == 999 or 19.0 < d["sqnr_db"] < 22.5 for d in compared["differences"])
    restored = load_dense(name, tmp_path / "d", dtype=torch.float32)
    assert relative_error(logits(name, restored), logits(name, load_dense(name, saved(name), dtype=torch.float32))) < 0.3


@every
@layouts
def test_what_transformers_cannot_load_is_said_and_all_else_loads(name, layout, saved, tmp_path):
    notes = " ".join(quantized(name, layout, saved, tmp_path)["notes"])
    said = SAID.get((name, layout))
    assert (said or "") in notes
    dequantize(tmp_path / "q", tmp_path / "d")
    expected = logits(name, load_dense(name, tmp_path / "d", dtype=torch.float32))
    backend = GPTQConfig(bits=4, backend="torch") if layout == "gptq" else AwqConfig(backend="torch_awq")
    try:
        model, info = MODELS[name][0].from_pretrained(
            tmp_path / "q", output_loading_info=True, quantization_config=backend, dtype=torch.float16
        )
        with torch.compiler.set_stance("force_eager"):
            error = relative_error(logits(name, model.eval()).float(), expected)
        loads = not any(info.values()) and error < 0.002
    except (ValueError, AttributeError, RuntimeError, UnboundLocalError):
        loads = False
    # once gptqmodel is loaded, AWQ of Qwen3-MoE loads in transformers, too: it depends on what ran before
    if (name, layout) != ("qwen3_moe", "awq"):
        assert loads == (said is None), notes
