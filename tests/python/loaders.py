"""GPTQ and AWQ directories in the programs that read them: transformers with gptqmodel, and gptqmodel by itself.

Everything runs in eager mode on gptqmodel's plain torch kernels: others compile C++ where they find a compiler.
"""

import json
import pathlib

import torch
from helpers import TEXT, dequantize, relative_error, tensors
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

# Relative errors of logits between a loader that multiplies in f16 and the dense model in f32. Measured: 0.0005; with
# one layer's nibbles in another order 0.16 to 0.38; a single wrong nibble does not show here, but in check_weights.
F16_ERROR = 0.0015


def config(path) -> dict:
    """The quantization_config of a directory."""
    return json.loads((pathlib.Path(path) / "config.json").read_text())["quantization_config"]


def in_transformers(path, **options):
    """Loads a directory; one that is quantized by gptqmodel's torch kernels, in f16."""
    quantization = json.loads((pathlib.Path(path) / "config.json").read_text()).get("quantization_config")
    if quantization and quantization["quant_method"] == "gptq":
        options["quantization_config"] = GPTQConfig(bits=quantization["bits"], backend="torch")
    elif quantization and quantization["quant_method"] == "awq":
        options["quantization_config"] = AwqConfig(backend="torch_awq")
    options.setdefault("dtype", torch.float16 if quantization else torch.float32)
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


def in_gptqmodel(path):
    from gptqmodel import BACKEND, GPTQModel

    return GPTQModel.load(str(path), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16).model.eval()


@torch.no_grad()
def logits(model, text: str = TEXT) -> torch.Tensor:
    tokens = torch.tensor([list(text.encode()[:256])]) % model.config.vocab_size
    with torch.compiler.set_stance("force_eager"):
        return model(tokens).logits.float()


def quantized_modules(model) -> dict[str, torch.nn.Module]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "qweight")}


@torch.no_grad()
def weight(module) -> torch.Tensor:
    """What gptqmodel decodes a module's weight to: [O, I] in f16."""
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    assert module.scales.dtype == torch.float16
    if "Awq" in type(module).__name__:
        decoded = dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size)
    else:
        with torch.compiler.set_stance("force_eager"):
            decoded = module.dequantize_weight()
    assert decoded.dtype == torch.float16
    return decoded.T


def check_weights(model, dense) -> set[str]:
    """Every module decodes to the dense weights rounded to f16, bit for bit. Returns the modules' names."""
    expected, modules = tensors(dense), quantized_modules(model)
    for name, module in modules.items():
        assert torch.equal(weight(module), expected[f"{name}.weight"].half()), name
    return set(modules)


def check_against_dequantized(path, folder, layers: int = 14) -> None:
    """A directory in transformers: as many layers, their weights bit for bit, and the dequantized model's logits."""
    dense = dequantize(path, folder / "d", "--dtype", "f32")
    loaded = in_transformers(path)
    assert len(check_weights(loaded, dense)) == layers
    assert relative_error(logits(loaded), logits(in_transformers(dense))) < F16_ERROR
