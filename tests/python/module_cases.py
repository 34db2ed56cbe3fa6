"""What the tests of quantized modules share: parts made by compressed-tensors, and comparisons."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization import quantize as ct_quantize
from compressed_tensors.quantization.utils import calculate_qparams

from mono_quant.modules import quantized_class
from torch import nn

# Options of the binary → arguments of from_parts
FILES = {
    "w4a16 group 32": (["--bits", 4, "--group-size", 32], {"bits": 4, "group_size": 32}),
    "w4a16 channel": (["--bits", 4, "--strategy", "channel"], {"bits": 4}),
    "w8a16": (["--preset", "w8a16"], {"bits": 8}),
    "w8a16 group 32": (["--preset", "w8a16", "--group-size", 32], {"bits": 8, "group_size": 32}),
    "w8a8": (["--bits", 8], {"bits": 8}),
    "w8a8 group 32": (["--bits", 8, "--group-size", 32], {"bits": 8, "group_size": 32}),
    "w8a8 tensor": (["--bits", 8, "--strategy", "tensor"], {"bits": 8}),
}
# Name (from which the binary tells an embedding) → module and an input
FLOATS = {
    "proj": (lambda: nn.Linear(96, 43), lambda: torch.randn(2, 5, 96)),
    "conv": (lambda: nn.Conv2d(8, 11, (2, 4), padding=1), lambda: torch.randn(2, 8, 9, 7)),
    "lstm": (lambda: nn.LSTM(32, 64, 2, bidirectional=True), lambda: torch.randn(4, 3, 32)),
    "gru": (lambda: nn.GRU(64, 32, bias=False), lambda: torch.randn(4, 3, 64)),
    "embed": (lambda: nn.Embedding(43, 64), lambda: torch.randint(0, 43, (2, 7))),
}
symmetries = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])


def parts_of(module, bits=4, group_size=None, symmetric=True, packed=True):
    """What a file would hold of a module: by compressed-tensors' functions."""
    parts = {}
    for name, weight in module.named_parameters(recurse=False):
        weight = weight.detach()
        if not name.startswith("weight"):
            parts[name] = weight.clone()
            continue
        x = weight.flatten(1)
        args = QuantizationArgs(
            num_bits=bits, symmetric=symmetric, strategy="group", group_size=group_size or x.shape[1]
        )
        low, high = x.view(len(x), -1, args.group_size).aminmax(dim=-1)
        scale, zero = calculate_qparams(low, high, args)
        zero = zero.round().to(torch.int8)
        q = ct_quantize(x, scale, zero, args, dtype=torch.int8)
        parts[name + "_scale"] = scale
        if packed:
            parts[name + "_packed"] = pack_to_int32(q, bits)
            parts[name + "_shape"] = torch.tensor(weight.shape)
        else:
            parts[name] = q.view(weight.shape)
        if not symmetric:
            parts[name + "_zero_point"] = pack_to_int32(zero, bits, packed_dim=0) if packed else zero
    return parts


def quantized(module, bits=4, group_size=None, symmetric=True, packed=True, **options):
    parts = parts_of(module, bits, group_size, symmetric, packed)
    return quantized_class(module).from_parts(module, parts, bits=bits, **options)


def like_float(module):
    """The float module; without gradients, because torch computes a GRU's products otherwise where there are any."""
    return module.to_float().requires_grad_(False)


def same(found, expected, **tolerance):
    """Equal tensors, or tuples of them, bit for bit unless there is a tolerance."""
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, **(tolerance or {"rtol": 0, "atol": 0}))
        return
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        same(a, b, **tolerance) if b is not None else None


ROUNDING = {"rtol": 1e-5, "atol": 1e-5}
