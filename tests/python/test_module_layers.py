"""Quantized layers beside the standard ones with the same weights."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization import quantize as ct_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from module_cases import ROUNDING, like_float, parts_of, quantized, same, symmetries
from mono_quant.modules import QUANTIZED, base, inputs
from torch import nn

# Linear


@pytest.mark.parametrize("packed", [True, False])
@symmetries
@torch.no_grad()
def test_a_linear_of_several_blocks_is_the_float_linear(packed, symmetric, monkeypatch):
    monkeypatch.setattr(base, "BLOCK", 1 << 12)
    module = quantized(nn.Linear(64, 203), 8, 16, symmetric, packed)
    for x in (torch.randn(64), torch.randn(3, 2, 64), torch.randn(0, 64)):
        same(module(x), like_float(module)(x), **ROUNDING)


def fake(x, scale, zero=0):
    return ((x / scale + zero).round().clamp(-128, 127) - zero) * scale


@pytest.mark.parametrize("kernel", [True, False], ids=["int8", "float"])
@pytest.mark.parametrize("bias", [True, False])
@symmetries
@torch.no_grad()
def test_dynamic_inputs_are_compressed_tensors_tokens(symmetric, bias, kernel, monkeypatch):
    monkeypatch.setattr(inputs, "INT8_MATMUL", kernel and inputs.INT8_MATMUL)
    module = quantized(nn.Linear(96, 43, bias=bias), 8, None, symmetric, packed=False, inputs="dynamic")
    size = torch.logspace(-3, 3, 5)[:, None]  # what a token's rounding errors are proportional to
    x = torch.randn(2, 5, 96) * size
    x[0, 0], x[0, 1, :2] = 0, torch.tensor([-7.0, 7.0])
    args = QuantizationArgs(num_bits=8, symmetric=True, strategy="token", dynamic=True)
    scale, _ = calculate_qparams(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), args)
    rounded = ct_quantize(x, scale, torch.zeros_like(scale), args) * scale
    standard = like_float(module)
    same(module(x) / size, standard(rounded) / size, **ROUNDING)
    assert (module(x) - standard(x)).abs().max() > 1e-3
    same(module(x[0, 3]) / size[3], module(x)[0, 3] / size[3], **ROUNDING)  # a token does not depend on others
    same(module(x.transpose(0, 1)).transpose(0, 1) / size, module(x) / size, **ROUNDING)
    turned = torch.randn(96, 7).t()
    same(module(turned), module(turned.contiguous()), **ROUNDING)
    assert module(x[:0]).shape == (0, 5, 43) and module(x.bfloat16()).dtype == torch.bfloat16
    x[0, 0, 0] = torch.nan
    assert module(x)[0, 0].isnan().all() and not module(x)[0, 1:].isnan().any()


@pytest.mark.parametrize("kernel", [True, False], ids=["int8", "float"])
@pytest.mark.parametrize("zero", [None, -37])
@symmetries
@torch.no_grad()
def test_static_inputs_use_the_stored_scale(symmetric, zero, kernel, monkeypatch):
    monkeypatch.setattr(inputs, "INT8_MATMUL", kernel and inputs.INT8_MATMUL)
    original, x = nn.Linear(96, 43), torch.randn(2, 5, 96)
    parts = parts_of(original, 8, None, symmetric, packed=False) | {"input_scale": torch.tensor([0.02])}
    if zero is not None:
        parts["input_zero_point"] = torch.tensor([zero], dtype=torch.int8)
    module = QUANTIZED[nn.Linear].from_parts(original, parts, bits=8, inputs="static")
    assert module.state_dict().keys() == parts.keys()
    expected = like_float(module)(fake(x, torch.tensor(0.02), zero or 0))
    same(module(x), expected, **ROUNDING)
    with_nan = x.clone()
    with_nan[1, 2, 3] = torch.nan
    assert torch.equal(module(with_nan).isnan().any(-1), with_nan.isnan().any(-1))
    module.input_scale *= 2
    assert not torch.allclose(module(x), expected, atol=1e-3)
    empty = QUANTIZED[nn.Linear](96, 43, symmetric=symmetric, inputs="static", inputs_symmetric=zero is None)
    empty.load_state_dict(module.state_dict())
    same(empty(x), module(x))


def test_int8_products_are_exact_at_the_extremes():
    if not inputs.INT8_MATMUL:
        pytest.skip("this CPU multiplies floats")
    for k in (1, 77, 1024, 33025):
        for a in (-128, 127):
            for b in (-128, 127):
                x, w = torch.full((3, k), a, dtype=torch.int8), torch.full((5, k), b, dtype=torch.int8)
                zx, zw = (torch.tensor([-128 if v == 127 else 127], dtype=torch.int8) for v in (a, b))
                found = inputs.int8_linear(x, w, zx, zw)
                assert inputs.exact_in_int32(k, False) and (found == k * (a - zx.int()) * (b - zw.int())).all()
    assert not inputs.exact_in_int32(33026, False) and inputs.exact_in_int32(131071, True)


@pytest.mark.parametrize("options", [{"bits": 4, "group_size": 32}, {"bits": 8, "packed": False, "inputs": "dynamic"}])
def test_gradients_reach_inputs(options):
    module, x = quantized(nn.Linear(64, 32), **options), torch.randn(3, 64, requires_grad=True)
    y = torch.randn(3, 64, requires_grad=True)
    module(x).sum().backward()
    like_float(module)(y).sum().backward()
    same(x.grad, y.grad, **ROUNDING)


def test_integer_inputs_are_refused():
    with pytest.raises(RuntimeError):
        quantized(nn.Linear(64, 32))(torch.ones(2, 64, dtype=torch.int64))


@torch.no_grad()
def test_autocast():
    module, x = quantized(nn.Linear(64, 32), group_size=32), torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        same(module(x), like_float(module)(x))


# Convolutions

CONVOLUTIONS = {
    "stride": dict(stride=2, padding=1),
    "dilation": dict(dilation=2, padding="same"),
    "valid": dict(padding="valid", bias=False),
    "groups": dict(groups=4),
    "depthwise": dict(groups=8, padding=1),
    "reflect": dict(padding=2, padding_mode="reflect"),
    "replicate": dict(padding=1, padding_mode="replicate", stride=2),
    "circular": dict(padding=2, padding_mode="circular", dilation=2),
    "reflect same, even kernel": dict(kernel_size=4, padding="same", padding_mode="reflect", dilation=2),
    "circular valid": dict(padding="valid", padding_mode="circular"),
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
@torch.no_grad()
def test_convolutions(kind, options):
    dims = 1 if kind is nn.Conv1d else 2
    original = kind(8, 16, **{"kernel_size": 3, **options})
    for bits, packed in ((4, True), (8, False)):
        module = quantized(original, bits, packed=packed)
        for x in (torch.randn(2, 8, *[11, 9][:dims]), torch.randn(8, *[11, 9][:dims])):
            expected = like_float(module)(x)
            same(module(x), expected)
            assert expected.shape == original(x).shape
        empty = type(module)(8, 16, **{"kernel_size": 3, **options}, bits=bits, packed=packed)
        empty.load_state_dict(module.state_dict())
        same(empty(x), module(x))


@torch.no_grad()
def test_convolution_with_a_padding_for_each_axis():
    original = nn.Conv2d(8, 16, (3, 5), stride=(1, 2), padding=(2, 1), dilation=(2, 1), padding_mode="circular")
    module, x = quantized(original, symmetric=False), torch.randn(2, 8, 12, 10)
    same(module(x), like_float(module)(x))


@pytest.mark.parametrize(
    "options",
    [dict(stride=3, padding=1), dict(stride=2, output_padding=1, groups=4), dict(stride=2, dilation=2, bias=False)],
)
@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d])
@torch.no_grad()
def test_transposed_convolutions(kind, options):
    dims = 1 if kind is nn.ConvTranspose1d else 2
    original = kind(8, 16, 3, **options)
    module = quantized(original, symmetric=False)
    standard = like_float(module)
    for lead in ([2, 8], [8]):
        x = torch.randn(*lead, *[7, 6][:dims])
        same(module(x), standard(x))
        smallest = list(standard(x).shape[-dims:])
        size = [n - (options.get("output_padding") or 0) + 1 for n in smallest]
        same(module(x, size), standard(x, size))
        same(module(x, [*standard(x).shape[:-dims], *size]), standard(x, size))
        with pytest.raises(ValueError, match="is not between"):
            module(x, [n + 9 for n in size])


@torch.no_grad()
def test_convolutions_round_inputs_by_sample_or_by_the_stored_scale():
    original, x = nn.Conv2d(8, 16, 3, padding=1), torch.randn(3, 8, 9, 9) * torch.tensor([1, 10, 0.1]).view(3, 1, 1, 1)
    module = quantized(original, 8, packed=False, inputs="dynamic")
    scale = x.abs().amax((1, 2, 3), keepdim=True) / 127.5
    same(module(x), like_float(module)(fake(x, scale)), **ROUNDING)
    same(module(x[1]), module(x)[1], **ROUNDING)
    parts = parts_of(original, 8, packed=False)
    parts |= {"input_scale": torch.tensor([0.05]), "input_zero_point": torch.tensor([3], dtype=torch.int8)}
    static = QUANTIZED[nn.Conv2d].from_parts(original, parts, bits=8, inputs="static")
    same(static(x), like_float(static)(fake(x, torch.tensor(0.05), 3)), **ROUNDING)
