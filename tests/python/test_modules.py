"""Quantized modules: the file's buffers, the standard module's outputs."""

import copy
import io
import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization import dequantize as ct_dequantize
from compressed_tensors.quantization import quantize as ct_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from helpers import dequantize, quantize, tensors
from mono_quant.modules import QUANTIZED, WeightScheme, base, inputs, quantized_class
from mono_quant.modules.codes import unpack
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

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


# Files


@symmetries
@pytest.mark.parametrize("scheme", FILES.values(), ids=FILES.keys())
@pytest.mark.parametrize("kind", FLOATS)
@torch.no_grad()
def test_a_files_tensors_are_the_modules_state(kind, scheme, symmetric, tmp_path):
    (make, sample), (options, arguments) = FLOATS[kind], scheme
    original = make()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    save_file({f"{kind}.{name}": value for name, value in before.items()}, tmp_path / "in.safetensors")
    sign = "symmetric" if symmetric else "asymmetric"
    types = "linear,conv2d,lstm,embedding"
    quantize(
        tmp_path / "in.safetensors", tmp_path / "q.safetensors", "--layer-types", types, "--scheme", sign, *options
    )
    stored = {name.removeprefix(kind + "."): value for name, value in tensors(tmp_path / "q.safetensors").items()}
    restored = tensors(dequantize(tmp_path / "q.safetensors", tmp_path / "d.safetensors"))

    module = quantized_class(original).from_parts(original, stored, symmetric=symmetric, **arguments)
    state = module.state_dict()
    assert state.keys() == stored.keys()
    for name, value in stored.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value), name
    standard = like_float(module)
    assert type(standard) is type(original)
    for name, value in standard.state_dict().items():
        assert torch.equal(value, restored[f"{kind}.{name}"]), name
    x = sample()
    out, expected = module(x), standard(x)
    same(out, expected)

    empty = type(module)(**module.config, schemes=module.schemes)
    assert not torch.equal(empty(x)[0], out[0])
    empty.load_state_dict(stored, strict=True)
    same(empty(x), out)
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name])


def test_constructor_makes_the_buffers_of_its_scheme():
    def layout(module):
        return {name: (value.dtype, list(value.shape)) for name, value in module.state_dict().items()}

    packed = QUANTIZED[nn.Linear](96, 43, bits=4, group_size=32, symmetric=False, dtype=torch.float16)
    assert layout(packed) == {
        "bias": (torch.float16, [43]),
        "weight_scale": (torch.float16, [43, 3]),
        "weight_packed": (torch.int32, [43, 12]),
        "weight_shape": (torch.int64, [2]),
        "weight_zero_point": (torch.int32, [6, 3]),
    }
    static = QUANTIZED[nn.Conv2d](3, 5, 3, bias=False, bits=8, inputs="static", inputs_symmetric=False)
    assert layout(static) == {
        "weight": (torch.int8, [5, 3, 3, 3]),
        "weight_scale": (torch.float32, [5, 1]),
        "input_scale": (torch.float32, [1]),
        "input_zero_point": (torch.int8, [1]),
    }
    mixed = QUANTIZED[nn.GRU](4, 8, bits=8, schemes={"weight_hh_l0": WeightScheme(4), "weight_ih_l0": None})
    assert layout(mixed) == {
        "weight_ih_l0": (torch.float32, [24, 4]),
        "weight_hh_l0_scale": (torch.float32, [24, 1]),
        "weight_hh_l0_packed": (torch.int32, [24, 1]),
        "weight_hh_l0_shape": (torch.int64, [2]),
        "bias_ih_l0": (torch.float32, [24]),
        "bias_hh_l0": (torch.float32, [24]),
    }


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("columns", [1, 7, 8, 75, 64])
def test_unpacking_is_the_inverse_of_compressed_tensors_packing(bits, columns):
    q = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (13, columns), dtype=torch.int8)
    assert torch.equal(unpack(pack_to_int32(q, bits), bits, columns), q)


def test_decoding_is_compressed_tensors():
    original = nn.Linear(75, 43)
    args = QuantizationArgs(num_bits=4, symmetric=False, strategy="group", group_size=25)
    parts = parts_of(original, 4, 25, symmetric=False)
    module = QUANTIZED[nn.Linear].from_parts(original, parts, bits=4, group_size=25, symmetric=False)
    q = unpack(parts["weight_packed"], 4, 75)
    zero = unpack(parts["weight_zero_point"].t(), 4, 43).t()
    assert torch.equal(module.dequantize(), ct_dequantize(q, parts["weight_scale"], zero, args))


def test_packed_codes_with_one_scale_and_zero_point():
    q = torch.randint(-8, 8, (5, 7), dtype=torch.int8)
    parts = {
        "weight_packed": pack_to_int32(q, 4),
        "weight_shape": torch.tensor([5, 7]),
        "weight_scale": torch.tensor([0.25]),
        "weight_zero_point": pack_to_int32(torch.tensor([[-3]], dtype=torch.int8), 4, packed_dim=0),
    }
    module = QUANTIZED[nn.Embedding].from_parts(nn.Embedding(5, 7), parts, bits=4)
    assert torch.equal(module.dequantize(), (q + 3) * 0.25)
    assert torch.equal(module(torch.tensor([4, 1])), ((q + 3) * 0.25)[[4, 1]])
    empty = type(module)(5, 7, bits=4, symmetric=False, per_tensor=True)
    empty.load_state_dict(module.state_dict())
    assert torch.equal(empty.weight, module.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [["--bits", 4, "--group-size", 32], ["--bits", 8]])
@torch.no_grad()
def test_half_precision_files(options, dtype, tmp_path):
    original, x = nn.Linear(96, 43, dtype=dtype), torch.randn(3, 96, dtype=dtype)
    save_file({f"p.{name}": value for name, value in original.state_dict().items()}, tmp_path / "in.safetensors")
    quantize(tmp_path / "in.safetensors", tmp_path / "q.safetensors", *options)
    restored = tensors(dequantize(tmp_path / "q.safetensors", tmp_path / "d.safetensors"))
    stored = {name.removeprefix("p."): value for name, value in tensors(tmp_path / "q.safetensors").items()}
    module = QUANTIZED[nn.Linear].from_parts(original, stored, bits=options[1])
    assert module.weight_scale.dtype == dtype and torch.equal(module.weight, restored["p.weight"])
    same(module(x), nn.functional.linear(x, restored["p.weight"], original.bias))


# Refusals


def test_wrong_parts_are_refused():
    original, quantized_linear = nn.Linear(64, 32), QUANTIZED[nn.Linear]
    parts = parts_of(original, 4, 32)

    def refused(match, changes=None, drop=(), **options):
        changed = {name: value for name, value in (parts | (changes or {})).items() if name not in drop}
        with pytest.raises(ValueError, match=match):
            quantized_linear.from_parts(original, changed, **{"bits": 4} | options)

    refused("weight_scale is missing", drop=["weight_scale"])
    refused("weight_shape is missing", drop=["weight_shape"])
    refused("without codes", drop=["weight_packed", "weight_scale", "weight_shape"])
    refused("no place for g_idx", {"g_idx": torch.zeros(64)})
    refused("weight_packed is torch.int64", {"weight_packed": parts["weight_packed"].long()})
    refused("weight_packed is torch.int32 .32, 8., where", bits=8)
    refused("weight_shape is .32, 63.", {"weight_shape": torch.tensor([32, 63])})
    refused("5 groups", {"weight_scale": torch.ones(32, 5)})
    refused("group_size is 16", group_size=16)
    refused("symmetric is False", symmetric=False)
    refused("input_scale is missing", inputs="static")
    refused("inputs='float'", inputs="float")
    refused("no place for input_scale", {"input_scale": torch.ones(1)})
    with pytest.raises(ValueError, match="QuantizedLSTM with inputs='dynamic'"):
        QUANTIZED[nn.LSTM](4, 4, inputs="dynamic")
    with pytest.raises(ValueError, match="groups of 48 do not divide rows of 64"):
        quantized_linear(64, 32, bits=4, group_size=48)
    with pytest.raises(ValueError, match="bits is 3"):
        quantized_linear(64, 32, bits=3)


def test_loading_what_does_not_fit_raises():
    module = quantized(nn.Linear(64, 32), bits=8, packed=False)
    with pytest.raises(RuntimeError, match="weight holds torch.int8, not torch.float32"):
        module.load_state_dict({**module.state_dict(), "weight": torch.randn(32, 64)})
    packed = quantized(nn.Linear(75, 32))
    with pytest.raises(RuntimeError, match=r"weight_shape is \[32, 76\], not \[32, 75\]"):
        packed.load_state_dict(quantized(nn.Linear(76, 32)).state_dict())
    with pytest.raises(RuntimeError, match="weight_packed"):
        packed.load_state_dict({"bias": torch.zeros(32)})


def test_loading_keeps_the_files_scales_exact():
    empty = QUANTIZED[nn.Linear](64, 32, bits=4, dtype=torch.float16)
    full = quantized(nn.Linear(64, 32))
    empty.load_state_dict(full.state_dict())
    assert torch.equal(empty.weight_scale, full.weight_scale) and empty.weight_scale.dtype == torch.float32
    assert torch.equal(empty.dequantize(), full.dequantize())


# Moving, copying, storing

EVERY = {
    "linear": (lambda: quantized(nn.Linear(64, 32), group_size=32, symmetric=False), lambda: torch.randn(3, 64)),
    "dynamic": (
        lambda: quantized(nn.Linear(64, 32), bits=8, packed=False, inputs="dynamic"),
        lambda: torch.randn(3, 64),
    ),
    "conv1d": (lambda: quantized(nn.Conv1d(4, 8, 3, padding_mode="circular", padding=1)), lambda: torch.randn(2, 4, 9)),
    "conv2d": (
        lambda: quantized(nn.Conv2d(4, 8, 3), bits=8, packed=False, inputs="dynamic"),
        lambda: torch.randn(2, 4, 9, 9),
    ),
    "conv_transpose2d": (lambda: quantized(nn.ConvTranspose2d(4, 8, 3)), lambda: torch.randn(2, 4, 9, 9)),
    "lstm": (lambda: quantized(nn.LSTM(8, 16, 2, dropout=0.5)).eval(), lambda: torch.randn(5, 2, 8)),
    "gru": (lambda: quantized(nn.GRU(8, 16, batch_first=True), bits=8), lambda: torch.randn(5, 2, 8)),
    "embedding": (lambda: quantized(nn.Embedding(43, 64), symmetric=False), lambda: torch.randint(0, 43, (2, 5))),
    "bag": (lambda: quantized(nn.EmbeddingBag(43, 64)), lambda: torch.randint(0, 43, (2, 5))),
}
every = pytest.mark.parametrize("make, sample", EVERY.values(), ids=EVERY.keys())


@every
@torch.no_grad()
def test_copies_and_pickles_are_equal(make, sample):
    module, x = make(), sample()
    expected = module(x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)]
    for other in copies:
        assert repr(other) == repr(module) and other.training == module.training
        same(other(x), expected)
        storages = {value.data_ptr() for value in module.state_dict().values()}
        assert not storages & {value.data_ptr() for value in other.state_dict().values()}
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    saved.seek(0)
    module.load_state_dict(torch.load(saved, weights_only=True))
    same(module(x), expected)
    module.load_state_dict(copies[0].state_dict(), assign=True)
    same(module(x), expected)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_casts_keep_codes_and_scales(make, sample, dtype):
    module, x = make(), sample()
    before = {name: value.clone() for name, value in module.named_buffers()}
    cast = copy.deepcopy(module).to(dtype)
    assert cast.compute_dtype == dtype and all(p.dtype == dtype for p in cast.parameters())
    for name, value in cast.named_buffers():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name]), name
    for other in (copy.deepcopy(module).type(dtype), copy.deepcopy(cast).float().to(dtype)):
        for name, value in other.named_buffers():
            assert torch.equal(value, before[name]), name
    standard, x = like_float(module).to(dtype), x.to(dtype) if x.is_floating_point() else x
    if module.inputs is None:
        same(cast(x), standard(x))
    else:
        assert cast(x).dtype == dtype
        same(cast(x), standard(x), rtol=0.05, atol=0.05)


@every
def test_to_meta_and_back_and_channels_last(make, sample):
    module, x = make(), sample()
    with torch.no_grad():
        expected = module(x)
        full = copy.deepcopy(module)
        module.to("meta")
        assert all(value.is_meta for value in module.state_dict().values())
        module.to_empty(device="cpu")
        module.load_state_dict(full.state_dict())
        same(module(x), expected)
        full.share_memory()
        same(full(x), expected)
        if x.dim() == 4:
            full.to(memory_format=torch.channels_last)
            same(full(x), expected, **ROUNDING)


@every
@torch.no_grad()
def test_compiles(make, sample):
    module, x = make(), sample()
    # torch traces no recurrent kernels in one graph
    compiled = torch.compile(module, fullgraph=not isinstance(module, (QUANTIZED[nn.LSTM], QUANTIZED[nn.GRU])))
    same(compiled(x), module(x), **ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"bits": 4, "group_size": 512}, {"bits": 8, "packed": False, "inputs": "dynamic"}])
def test_compiles_a_linear_of_many_blocks(options):
    module, x = quantized(nn.Linear(2048, 2080), **options), torch.randn(3, 2048)
    same(torch.compile(module, fullgraph=True)(x), module(x), **ROUNDING)


def test_modules_can_be_read_as_standard_ones():
    original = nn.Linear(64, 32, dtype=torch.float16)
    module = quantized(original.float(), group_size=32).half()
    assert module.weight.dtype == torch.float16 and module.weight.shape == (32, 64)
    assert torch.equal(module.weight, module.dequantize().half())
    assert (module.in_features, module.out_features) == (64, 32)
    assert repr(module) == (
        "QuantizedLinear(in_features=64, out_features=32, bias=True, bits=4, group_size=32, scheme=symmetric, "
        "strategy=group)"
    )
    dynamic = quantized(nn.Conv2d(3, 5, 3, stride=2), bits=8, packed=False, symmetric=False, inputs="dynamic")
    assert repr(dynamic) == (
        "QuantizedConv2d(3, 5, kernel_size=(3, 3), stride=(2, 2), bits=8, scheme=asymmetric, strategy=channel, "
        "inputs=dynamic)"
    )
    assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_training_flag_and_original_dtype_are_kept(training):
    original = nn.Linear(64, 32, dtype=torch.bfloat16).train(training)
    parts = parts_of(copy.deepcopy(original).float())
    del parts["bias"]
    module = QUANTIZED[nn.Linear].from_parts(original, parts, bits=4)
    assert module.training == module.to_float().training == training
    assert module.bias.dtype == module.compute_dtype == torch.bfloat16
    assert module.bias.data_ptr() != original.bias.data_ptr()
    assert all(p.dtype == torch.float32 and p.requires_grad for p in module.to_float().parameters())


def test_which_classes_can_be_replaced():
    class Renamed(nn.Linear):
        pass

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for standard, class_ in QUANTIZED.items():
        assert class_.float_class is standard
    assert quantized_class(Renamed(2, 2)) is QUANTIZED[nn.Linear]
    assert quantized_class(Doubled(2, 2)) is None
    assert quantized_class(nn.Conv3d(1, 1, 1)) is None and quantized_class(nn.RNN(1, 1)) is None


def test_transformers_conv1d_becomes_a_linear():
    from transformers.pytorch_utils import Conv1D

    original, x = Conv1D(24, 64), torch.randn(2, 3, 64)
    parts = parts_of(SimpleNamespace(named_parameters=lambda recurse: [("weight", original.weight.t())]), 8)
    module = quantized_class(original).from_parts(original, parts, bits=8)
    assert torch.equal(module.bias, original.bias)
    same(module(x), original(x), rtol=0.1, atol=0.02)


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


# Recurrent layers

RECURRENT = {
    "plain": dict(),
    "layers": dict(num_layers=3, dropout=0.3),
    "bidirectional": dict(num_layers=2, bidirectional=True, batch_first=True),
    "no bias": dict(bias=False),
    "projection": dict(num_layers=2, bidirectional=True, proj_size=5),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", RECURRENT.values(), ids=RECURRENT.keys())
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@torch.no_grad()
def test_recurrent_layers(kind, options, training):
    if kind is nn.GRU and "proj_size" in options:
        pytest.skip("nn.GRU has none")
    original = kind(8, 16, **options).train(training)
    module = quantized(original, symmetric=False)
    standard = like_float(module)
    layers = original.num_layers * (1 + original.bidirectional)
    hidden = options.get("proj_size") or 16

    def states(*batch):
        h, c = torch.randn(layers, *batch, hidden), torch.randn(layers, *batch, 16)
        return (h, c) if kind is nn.LSTM else h

    lengths = [5, 2, 4]
    padded = torch.randn(3, 5, 8) if original.batch_first else torch.randn(5, 3, 8)
    inputs = {
        "batch": (padded, states(3)),
        "unbatched": (torch.randn(5, 8), states()),
        "sorted": (pack_sequence([torch.randn(n, 8) for n in (5, 4, 2)]), states(3)),
        "unsorted": (pack_padded_sequence(padded, lengths, original.batch_first, enforce_sorted=False), states(3)),
    }
    for name, (x, hx) in inputs.items():
        for start in ((x,), (x, hx)):
            torch.manual_seed(1)
            found = module(*start)
            torch.manual_seed(1)
            expected = standard(*start)
            assert type(found[0]) is type(expected[0]) and type(found[1]) is type(expected[1]), name
            same(found, expected)


def test_recurrent_layers_refuse_wrong_shapes():
    module = quantized(nn.LSTM(8, 16))
    with pytest.raises(ValueError, match="7 features, expected 8"):
        module(torch.randn(5, 3, 7))
    with pytest.raises(ValueError, match="states of"):
        module(torch.randn(5, 3, 8), (torch.zeros(1, 2, 16), torch.zeros(1, 2, 16)))
    with pytest.raises(ValueError, match="2 or 3 axes"):
        module(torch.randn(1, 5, 3, 8))


@torch.no_grad()
def test_weights_of_a_recurrent_layer_may_differ():
    original, x = nn.LSTM(8, 16), torch.randn(5, 3, 8)
    four, eight = parts_of(original, 4), parts_of(original, 8, group_size=8)
    parts = {n: v for n, v in four.items() if "hh" in n} | {n: v for n, v in eight.items() if "weight_ih" in n}
    module = QUANTIZED[nn.LSTM].from_parts(original, parts, bits={"weight_ih_l0": 8, "weight_hh_l0": 4})
    same(module(x), like_float(module)(x))
    assert module.dequantize().keys() == {"weight_ih_l0", "weight_hh_l0"}
    assert "weight_hh_l0: bits=4, scheme=symmetric" in repr(module)
    float_hh = {n: v for n, v in eight.items() if "weight_ih" in n}
    partly = QUANTIZED[nn.LSTM].from_parts(original, float_hh, bits=8)
    assert torch.equal(partly.weight_hh_l0, original.weight_hh_l0)
    same(partly(x), like_float(partly)(x))


# Embeddings


@pytest.mark.parametrize("bits, packed", [(4, True), (8, True), (8, False)])
@pytest.mark.parametrize("options", [dict(padding_idx=3), dict(max_norm=5.0), dict(max_norm=20.0, norm_type=1.0)])
@symmetries
@torch.no_grad()
def test_embeddings(options, bits, packed, symmetric):
    module = quantized(nn.Embedding(43, 64, **options), bits, 16, symmetric, packed)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for ids in (torch.randint(0, 43, (2, 3, 5)), torch.tensor(42), torch.tensor([3, 0, 41], dtype=torch.int32)):
        found, expected = module(ids), like_float(module)(ids)
        same(found, expected) if "max_norm" not in options else same(found, expected, **ROUNDING)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    for wrong in (-1, 43):
        with pytest.raises(IndexError):
            module(torch.tensor([wrong]))
    assert module.half()(ids).dtype == torch.float16 and module.to_float().padding_idx == options.get("padding_idx")


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("options", [dict(), dict(padding_idx=3), dict(include_last_offset=True), dict(max_norm=2.0)])
@torch.no_grad()
def test_embedding_bags(mode, options):
    module = quantized(nn.EmbeddingBag(43, 64, mode=mode, **options), group_size=32)
    flat, offsets = torch.tensor([3, 1, 2, 3, 3, 42, 7]), torch.tensor([0, 2, 2, 5, 7])
    offsets = offsets if "include_last_offset" in options else offsets[:-1]
    same(module(flat, offsets), like_float(module)(flat, offsets), **ROUNDING)
    matrix = torch.randint(0, 43, (4, 6))
    if "include_last_offset" not in options:
        same(module(matrix), like_float(module)(matrix), **ROUNDING)
        if mode == "sum":
            weights = torch.rand(4, 6)
            same(module(matrix, None, weights), like_float(module)(matrix, None, weights), **ROUNDING)


# Inside other modules


@pytest.mark.parametrize("mask", [True, False])
@torch.no_grad()
def test_transformer_layers_quantize_inputs_in_eval_too(mask):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0)
    model = nn.TransformerEncoder(layer, 2)
    x = torch.randn(3, 7, 32)
    options = {"src_key_padding_mask": torch.arange(7) >= torch.tensor([[7], [5], [3]])} if mask else {}
    kept = ~options["src_key_padding_mask"] if mask else slice(None)
    for how in ("dynamic", None):
        other = copy.deepcopy(model)
        for block in other.layers:
            for parent, name in ((block, "linear1"), (block, "linear2"), (block.self_attn, "out_proj")):
                setattr(parent, name, quantized(getattr(parent, name), 8, packed=False, inputs=how))
        slow, fast = other.train()(x, **options), other.eval()(x, **options)
        assert type(fast) is torch.Tensor
        same(fast[kept], slow[kept], rtol=1e-4, atol=1e-4)
        same(fast[kept], model.train()(x, **options)[kept], rtol=0.1, atol=0.1)


# Memory


def stored_bytes(module):
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(1024, 512), lambda: nn.LSTM(256, 256), lambda: nn.Conv2d(64, 64, 4)]
)
def test_state_takes_a_quarter_or_an_eighth(make):
    original = make()
    weights = sum(p.numel() for n, p in original.named_parameters() if n.startswith("weight"))
    matrices = [p.flatten(1).shape for n, p in original.named_parameters() if n.startswith("weight")]
    rest = stored_bytes(original) - 4 * weights
    for bits, packed in ((4, True), (8, True), (8, False)):
        module = quantized(original, bits, packed=packed)
        extra = rest + sum(4 * rows + 8 * 4 * packed for rows, _ in matrices)
        assert stored_bytes(module) <= weights * bits / 8 + extra
        grouped = quantized(original, bits, 64, packed=packed)
        assert stored_bytes(grouped) <= weights * bits / 8 + extra + weights * 4 / 64


RSS = """
import json, sys, torch
from mono_quant.modules import QUANTIZED
from torch import nn

torch.set_num_threads(2)
kind, size, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])


def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


def make(n):
    if kind == "embedding":
        return QUANTIZED[nn.Embedding](n, n, **options), torch.tensor([[1, 2, 3]])
    if kind == "lstm":
        return QUANTIZED[nn.LSTM](n, n // 4, **options), torch.randn(2, 1, n)
    return QUANTIZED[nn.Linear](n, n, **options), torch.randn(4, n)


with torch.no_grad():
    small, x = make(256)
    small(x)  # whatever torch loads on first use
    start = status("VmRSS")
    module, x = make(size)
    for name, buffer in module.named_buffers():
        buffer.fill_(1) if "shape" not in name else None
    held = status("VmRSS")
    for _ in range(3):
        module(x)
    print(json.dumps([held - start, status("VmRSS") - held, status("VmHWM") - held]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "kind, options, held, peak",
    [
        ("linear", {"bits": 4, "group_size": 128}, 34, 48),
        ("linear", {"bits": 8, "symmetric": False}, 64, 48),
        ("linear", {"bits": 8, "inputs": "dynamic"}, 64, 16),
        ("embedding", {"bits": 4, "group_size": 128}, 34, 8),
        ("lstm", {"bits": 4, "group_size": 64}, 45, 700),
    ],
)
def test_no_float_copy_outlives_a_forward(kind, options, held, peak):
    """A matrix of 8192 × 8192: 256 MiB as float32. All in MiB. The allocator may keep a few blocks of 4 MiB."""
    command = [sys.executable, "-c", RSS, kind, "8192", json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, grown, highest = json.loads(done.stdout)
    print(f"{kind} {options}: {found:.0f} MiB held, {grown:.0f} more after forwards, {highest:.0f} at the highest")
    assert found <= held + 6
    assert grown <= 32
    assert highest <= peak
