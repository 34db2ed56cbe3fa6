"""Quantized recurrent layers and embeddings, layers inside other modules, and memory."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from module_cases import ROUNDING, like_float, parts_of, quantized, same, symmetries
from mono_quant.modules import QUANTIZED
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

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
