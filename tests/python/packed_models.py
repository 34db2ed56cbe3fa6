"""Models for the tests of GPTQ and AWQ: tiny-llama, and small random ones with biases and with tied weights."""

import json
import shutil

import layouts
import numpy as np
import pytest
import torch
import transformers as T
from helpers import TINY_LLAMA, tensors
from safetensors.torch import save_file

SIZES = dict(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
RANDOM = {
    "qwen2, biases": lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**SIZES)),
    "llama, tied": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama, biases": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
}


def save_random(name, path, dtype=torch.bfloat16):
    """Saves a random model whose every weight and bias matters to the logits."""
    torch.manual_seed(0)
    model = RANDOM[name]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0 if parameter.ndim > 1 else 0.5, 0.06)
    model.to(dtype).save_pretrained(path)
    return path


each_random = pytest.mark.parametrize("name", RANDOM)


def by_hand(output, kind: str, bits: int, group: int, symmetric: bool, **quantization):
    """tiny-llama quantized and packed by `layouts` alone. Returns its directory, and its dense one."""
    packed, dense = {}, {}
    for name, tensor in tensors(TINY_LLAMA).items():
        if "_proj" not in name:
            packed[name], dense[name] = tensor, tensor.float()
            continue
        codes, zeros, scales = layouts.rounded_to_nearest(tensor.float().numpy(), bits, group, symmetric)
        if kind == "gptq":
            parts = layouts.gptq(codes, zeros, scales, bits, v2=quantization.get("checkpoint_format") == "gptq_v2")
        else:
            parts = layouts.awq(codes, zeros, scales)
        module = name.removesuffix(".weight")
        packed |= {f"{module}.{part}": torch.from_numpy(np.ascontiguousarray(a)) for part, a in parts.items()}
        dense[name] = torch.from_numpy(layouts.values(codes, zeros, scales))
    config = json.loads((TINY_LLAMA / "config.json").read_text())
    quantization |= {"quant_method": kind, "bits": bits, "group_size": group}
    for directory, stored, extra in [
        (output / "q", packed, {"quantization_config": quantization}),
        (output / "d", dense, {"dtype": "float32"}),
    ]:
        shutil.copytree(TINY_LLAMA, directory, ignore=shutil.ignore_patterns("model.safetensors"))
        save_file(stored, directory / "model.safetensors", {"format": "pt"})
        (directory / "config.json").write_text(json.dumps(config | extra))
    return output / "q", output / "d"
