"""calibrate(): every form of data, the model left alone, poor data named, the scales that the engine makes of it."""

import copy
import random

import pytest
import torch
from mono_quant import _native
from mono_quant._tensors import run, source
from mono_quant.calibration import Calibration, calibrate
from mono_quant.exceptions import ConfigurationError, InputError
from mono_quant.observers import HistogramObserver, MinMaxObserver, Observer, PercentileObserver
from mono_quant.options import Options
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from transformers import BertConfig, BertModel


class Net(nn.Module):
    """Takes images, and optionally something to add to the features."""

    def __init__(self):
        super().__init__()
        conv = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.body = nn.ModuleDict({"conv": conv})
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.line = nn.Conv1d(4, 4, 3)
        self.head = nn.Linear(4, 5)
        self.again = self.head
        self.unused = nn.Linear(5, 5)
        self.register_buffer("calls", torch.zeros(()))
        self.seen = 0

    def forward(self, image, shift=None):
        self.calls += 1
        self.seen += len(image)
        self.last = image
        x = self.up(self.body["conv"](image)).flatten(2)
        x = self.line(x).mean(-1)
        return self.again(self.head(x if shift is None else x + shift)[..., :4])


LAYERS = ["body.conv.1", "up", "line", "head", "unused"]
IMAGES = torch.randn(24, 3, 7, 7, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net():
    return Net()


def states(calibration):
    return {name: observer.state() for name, observer in calibration.observers.items()}


# What is observed


@pytest.mark.parametrize("observer", ["minmax", "moving_average", "histogram", "percentile"])
@torch.no_grad()
def test_observes_the_inputs_of_layers(net, observer):
    net.body.conv[0] = nn.ReLU()
    found = calibrate(net, list(IMAGES.split(8)), observer=observer)
    assert list(found.observers) == LAYERS and found.unreached == ["unused"]
    assert (found.samples, found.batches) == (24, 3)
    net.eval()
    expected = {name: type(o)() for name, o in found.observers.items()}
    for image in IMAGES.split(8):
        x = expected["body.conv.1"](image.relu())
        x = expected["up"](net.body.conv(x))
        x = expected["line"](net.up(x).flatten(2))
        x = expected["head"](net.line(x).mean(-1))
        expected["head"](net.head(x)[..., :4])
    for name in LAYERS:
        for symmetric in [True, False] if name != "unused" else []:
            theirs = expected[name].calculate_qparams(symmetric=symmetric)
            own = found.observers[name].calculate_qparams(symmetric=symmetric)
            assert torch.equal(own[0], theirs[0]) and torch.equal(own[1], theirs[1])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(IMAGES)


def test_every_form_of_data_gives_the_same(net):
    parts = list(IMAGES.split(8))
    shift = torch.zeros(8, 4)
    expected = states(calibrate(net, parts))
    labelled = TensorDataset(IMAGES, torch.zeros(24, 4))
    plain = {
        "tuples": [(x,) for x in parts],
        "lists": [[x] for x in parts],
        "optional input": [(x, shift) for x in parts],
        "dicts": [{"image": x} for x in parts],
        "all by name": [{"shift": shift, "image": x} for x in parts],
        "generator": (x for x in parts),
        "tuple of tensors": tuple(parts),
        "loader": DataLoader(IMAGES, batch_size=8),
        "loader of pairs": DataLoader(labelled, batch_size=8),
        "loader of a stream": DataLoader(Stream(), batch_size=8),
        "float64": [x.double() for x in parts],
    }
    for what, data in plain.items():
        found = calibrate(net, data)
        assert states(found) == expected and found.batches == 3, what
        assert not any("left out" in w for w in found.warnings), what
    whole = calibrate(net, IMAGES)
    assert whole.batches == 1 and states(whole) == states(calibrate(net, {"image": IMAGES}))


def test_inputs_that_forward_does_not_take_are_left_out():
    model, x = nn.Linear(4, 2), torch.randn(12, 4)
    found = calibrate(model, DataLoader(TensorDataset(x, torch.arange(12), torch.arange(12)), batch_size=6))
    assert found.warnings == ["input 2, 3 of 3 in each batch was left out: forward takes 1 (input)"]
    found = calibrate(model, [{"input": x, "labels": x}])
    assert found.warnings == ["input 'labels' was left out: forward does not take it"]
    assert list(found.observers) == [""]
    with pytest.raises(InputError, match="accepts none of its inputs.*'x'"):
        calibrate(model, [{"x": x}])


def test_inputs_follow_the_model():
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertModel(BertConfig(**sizes, intermediate_size=32, max_position_embeddings=16)).to(torch.bfloat16)
    ids = torch.randint(0, 50, (12, 7))
    data = [{"input_ids": ids, "attention_mask": torch.ones(12, 7)}]
    found = calibrate(model, data)
    assert found.warnings == [] and len(found.observers) == 2 * 6 + 1
    embeds = model.embeddings.word_embeddings(ids).double().detach()
    assert states(calibrate(model, [{"inputs_embeds": embeds}])).keys() == states(found).keys()

    packed = pack_sequence([torch.randn(n, 4) for n in (5, 3, 2)])
    model = nn.Sequential(nn.LSTM(4, 6), Last(), nn.Linear(6, 2))
    assert calibrate(model, [packed]).samples == 3
    assert calibrate(model, packed).observers["2"].facts["values"] == 18


class Last(nn.Module):
    def forward(self, outputs):
        return outputs[1][0][-1]


def test_stops_after_the_samples(net):
    def stream():
        for part in IMAGES.split(10):
            yield part
        raise AssertionError("asked for more than needed")

    found = calibrate(net, stream(), num_calibration_samples=15)
    assert (found.samples, found.batches) == (15, 2)
    assert found.observers["up"].facts["samples"] == 15
    # Cut only where every tensor has a row a sample.
    pairs = [(IMAGES, torch.zeros(4))]
    assert calibrate(net, pairs, num_calibration_samples=15).samples == 24
    assert calibrate(net, [(IMAGES, torch.zeros(24, 4))], num_calibration_samples=15).samples == 15


def test_layers_and_observers_can_be_chosen(net):
    found = calibrate(net, IMAGES, layers=["again", "up"], observer=PercentileObserver(99.0))
    assert list(found.observers) == ["up", "head"]  # in the model's order, by first names
    assert all(o.percentile == 99.0 for o in found.observers.values())
    given = MinMaxObserver()
    assert type(calibrate(net, IMAGES, observer=MinMaxObserver).observers["up"]) is MinMaxObserver
    calibrate(net, IMAGES, observer=given)
    assert given.facts["batches"] == 0


def test_transformers_with_padding_and_compiled_models_are_observed_layer_by_layer():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    padding = torch.zeros(12, 5, dtype=torch.bool)
    padding[:, 3:] = True
    found = calibrate(encoder, [{"src": torch.randn(12, 5, 16), "src_key_padding_mask": padding}])
    assert found.unreached == ["layers.0.self_attn.out_proj", "layers.1.self_attn.out_proj"]
    assert "nn.MultiheadAttention uses its weight without calling it" in found.warnings[0]
    assert torch.backends.mha.get_fastpath_enabled()

    compiled = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), backend="eager")
    compiled(torch.randn(12, 4))
    assert calibrate(compiled, torch.randn(12, 4)).warnings == []


# The model stays as it is


@pytest.mark.parametrize("failing", [False, True])
def test_the_model_data_and_randomness_are_untouched(net, failing):
    net.train()
    net.body.conv[2].eval()
    net.up.register_forward_pre_hook(lambda module, args: None)
    state = copy.deepcopy(net.state_dict())
    tensors = {name: id(t) for name, t in net.state_dict(keep_vars=True).items()}
    flags = {name: m.training for name, m in net.named_modules()}
    attributes = {name: set(vars(m)) for name, m in net.named_modules()}
    hooks = {name: (dict(m._forward_pre_hooks), dict(m._forward_hooks)) for name, m in net.named_modules()}
    data, before = [IMAGES[:10].clone(), IMAGES[10:].clone()], torch.get_rng_state()
    python = random.getstate()
    if failing:
        with pytest.raises(InputError):
            calibrate(net, [*data, torch.ones(3, 4)])
    else:
        calibrate(net, DataLoader(TensorDataset(torch.cat(data)), batch_size=5, shuffle=True))
        calibrate(net, data)
    for name, tensor in net.state_dict(keep_vars=True).items():
        assert id(tensor) == tensors[name] and torch.equal(tensor, state[name]), name
        assert tensor.grad is None
    assert net.seen == 0
    assert flags == {name: m.training for name, m in net.named_modules()}
    assert attributes == {name: set(vars(m)) for name, m in net.named_modules()}
    assert hooks == {name: (dict(m._forward_pre_hooks), dict(m._forward_hooks)) for name, m in net.named_modules()}
    assert torch.equal(torch.cat(data), IMAGES)  # the first layer writes into its input
    assert torch.equal(before, torch.get_rng_state()) and python == random.getstate()
    assert torch.is_grad_enabled()


# Poor data


def test_poor_data_is_named(net):
    found = calibrate(net, IMAGES[:4])
    assert found.warnings[0].startswith("only 4 samples were given")
    assert found.warnings[1:] == ["unused: never reached by the data; it gets no scale"]

    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(0.25)
    x = torch.randn(12, 3)
    constant = "1: all its inputs were 0.25, which says nothing of other data"
    assert calibrate(model, x).warnings == [constant]

    identity = nn.Sequential(nn.Linear(3, 3))
    x[2, 1], x[3, 1] = float("inf"), -float("inf")
    assert calibrate(identity, x).warnings == ["0: 2 of its 36 inputs were infinite; they were left out"]
    spoilt = calibrate(identity, x, observer="minmax").warnings
    assert spoilt == ["0: 2 of its 36 inputs were infinite; no scale can be made of its range"]


def raising():
    yield IMAGES
    raise OSError("the disk is gone")


NAN = torch.where(torch.arange(147).view(1, 3, 7, 7) == 5, float("nan"), IMAGES[:2])
BAD_DATA = {
    "nothing": ([], "data is empty"),
    "empty generator": (iter(()), "data is empty"),
    "none": (None, "data is None; accepted"),
    "a number": (3, "data is an int"),
    "text": ("data.pt", "data is a str"),
    "numbers": ([1.0], "batch 0 is a float"),
    "arrays": ([IMAGES.numpy()], "batch 0 is a ndarray; torch.from_numpy"),
    "no tensors": ([IMAGES, {"image": "cat.png"}], "batch 1 holds no tensor"),
    "an empty batch": ([IMAGES, IMAGES[:0]], r"batch 1 is empty: its first tensor is \[0, 3, 7, 7\]"),
    "a dataset": (TensorDataset(IMAGES), r"TensorDataset is a dataset.*DataLoader\(dataset, batch_size=32\)"),
    "NaN": ([IMAGES, NAN], r"batch 1 \(\[2, 3, 7, 7\] float32\): .* layer 'body.conv.1': 2 of 294 values are NaN"),
    "wrong shapes": ([IMAGES, IMAGES[:, :2]], r"batch 1 \(\[24, 2, 7, 7\] float32\).* in layer 'body.conv.1'"),
    "labels as inputs": ([(IMAGES, torch.zeros(24, 9))], "forward got shift too"),
    "raising": (raising(), "batch 1: the data raised OSError: the disk is gone"),
}  # fmt: skip


@pytest.mark.parametrize("data, message", BAD_DATA.values(), ids=BAD_DATA.keys())
def test_bad_data_is_refused(net, data, message):
    with pytest.raises(InputError, match=message) as refused:
        calibrate(net, data)
    assert refused.value.suggestion
    if "raised" in str(refused.value):
        assert refused.value.__cause__ is not None


def test_bad_arguments_are_refused(net):
    for arguments, match in (
        ({"observer": "mean"}, "observer='mean'"),
        ({"observer": MinMaxObserver(axis=1)}, "one scale"),
        ({"layers": ["haed"]}, "no module 'haed'; head"),
        ({"layers": ["body.conv.2"]}, r"'body.conv.2' \(BatchNorm2d\)"),
        ({"layers": "head"}, "one name"),
        ({"layers": []}, "layers is empty"),
        ({"num_calibration_samples": 0}, "from 1 on"),
        ({"num_calibration_samples": True}, "from 1 on"),
    ):
        with pytest.raises(ConfigurationError, match=match):
            calibrate(net, iter([AssertionError("data was read")]), **arguments)
    for model, match in (
        ({}, "dict is no torch.nn.Module"),
        (nn.ReLU(), "no linear layer"),
        (nn.Linear(2, 2, device="meta"), "on the device meta"),
        (nn.LazyLinear(2), "uninitialized"),
    ):
        with pytest.raises(InputError, match=match):
            calibrate(model, IMAGES)


def test_progress_is_shown_if_asked_for(net, capsys):
    calibrate(net, IMAGES)
    assert capsys.readouterr() == ("", "")
    calibrate(net, IMAGES, show_progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "calibrate" in err and "100%" in err


# Files


def test_the_file_round_trips(net, tmp_path):
    path = tmp_path / "statistics.json"
    for observer in ("minmax", "histogram"):
        found = calibrate(net, IMAGES[:4], observer=observer, symmetric=False)
        found.save(path, force=True)
        back = Calibration.load(path)
        assert states(back) == states(found) and back.to_json() == found.to_json() == path.read_text()
        assert (back.symmetric, back.samples, back.batches) == (False, 4, 1)
        assert back.warnings == found.warnings and back.unreached == ["unused"]
        assert [type(o) for o in back.observers.values()] == [type(o) for o in found.observers.values()]
    assert [p.name for p in tmp_path.iterdir()] == ["statistics.json"]

    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="exists already; force=True replaces it"):
        found.save(path)
    assert path.read_bytes() == before
    with pytest.raises(ConfigurationError, match="is a directory"):
        found.save(tmp_path, force=True)
    with pytest.raises(InputError, match="cannot write"):
        found.save(tmp_path / "none" / "s.json")
    path.write_text('{"monoquant_calibration": 1, "symmetric"')
    with pytest.raises(InputError):
        Calibration.load(path)
    path.write_text("{}")
    with pytest.raises(InputError, match="no statistics"):
        Calibration.load(path)
    with pytest.raises(InputError):
        Calibration.load(tmp_path / "none.json")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("observer", [HistogramObserver, PercentileObserver(99.0)])
def test_the_engine_makes_the_same_scales_of_it(net, observer, symmetric, tmp_path):
    path = tmp_path / "statistics.json"
    found = calibrate(net, IMAGES, observer=observer, symmetric=symmetric)
    found.save(path)
    kinds = dict(zip(LAYERS, ["conv2d", "convtranspose", "conv1d", "linear", "linear"]))
    options = Options(bits=8).arguments(sorted(set(kinds.values()))) + ["--calibration", str(path)]
    weights = source("net", net.state_dict())
    plan = _native.quantize_model(weights, options, {f"{name}.weight": kind for name, kind in kinds.items()})
    made, _ = run(plan, "cpu")
    assert made["unused.weight"].dtype == torch.float32 and "unused.input_scale" not in made
    for name in LAYERS[:-1]:
        scale, zero_point = found.observers[name].calculate_qparams(symmetric=symmetric)
        assert made[f"{name}.weight"].dtype == torch.int8
        assert torch.equal(made[f"{name}.input_scale"], scale)
        if symmetric:
            assert f"{name}.input_zero_point" not in made
        else:
            assert torch.equal(made[f"{name}.input_zero_point"], zero_point.to(torch.int8))
    assert isinstance(found.observers["up"], Observer)
