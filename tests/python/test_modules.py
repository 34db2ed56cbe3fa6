"""Quantized modules: the file's buffers, and what they refuse."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization import dequantize as ct_dequantize
from helpers import dequantize, quantize, tensors
from module_cases import FILES, FLOATS, like_float, parts_of, quantized, same, symmetries
from mono_quant.modules import QUANTIZED, WeightScheme, quantized_class
from mono_quant.modules.codes import unpack
from safetensors.torch import save_file
from torch import nn

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
    types = "linear,conv2d,lstm,gru,embedding"
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
