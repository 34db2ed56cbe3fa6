"""Quantized modules that are moved, cast, copied, pickled, compiled, or read as standard ones."""

import copy
import io
import pickle
from types import SimpleNamespace

import pytest
import torch
from module_cases import ROUNDING, like_float, parts_of, quantized, same
from mono_quant.modules import QUANTIZED, quantized_class
from torch import nn

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
