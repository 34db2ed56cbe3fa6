"""Models trained on digits: how many they still read when quantized, and whether reported numbers are true."""

import functools
import math

import pytest
import torch
from helpers import DATA, decoded, sqnr_db, tensors
from mono_quant import calibrate, quantize, validate_quantization
from mono_quant.modules import QuantizedModule
from torch import nn
from torch.nn import functional as F

# Points of accuracy on 200 images that may be lost.
ALLOWED = {"int8 dynamic": 1.0, "int8 static": 1.0, "int4": 3.0}


class Images(nn.Module):
    """[n, 8, 8], values 0..16, to a shape that a network takes."""

    def __init__(self, *shape):
        super().__init__()
        self.shape = shape

    def forward(self, images):
        return images.float().div(16).reshape(len(images), *self.shape)


class Reader(nn.Module):
    """An LSTM over the rows."""

    def __init__(self):
        super().__init__()
        self.images, self.lstm, self.out = Images(8, 8), nn.LSTM(8, 96, batch_first=True), nn.Linear(96, 10)

    def forward(self, images):
        return self.out(self.lstm(self.images(images))[0][:, -1])


class Attentive(nn.Module):
    """A transformer over the rows."""

    def __init__(self):
        super().__init__()
        self.images, self.embed = Images(8, 8), nn.Linear(8, 64)
        self.place = nn.Parameter(torch.randn(8, 64) * 0.1)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(64, 10)

    def forward(self, images):
        return self.out(self.encoder(self.embed(self.images(images)) + self.place).mean(1))


def mlp():
    return nn.Sequential(Images(64), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn():
    return nn.Sequential(Images(1, 8, 8), nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
                         nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Flatten(), nn.Linear(512, 10))  # fmt: skip


MODELS = {"mlp": mlp, "cnn": cnn, "lstm": Reader, "transformer": Attentive}
STEPS = {"mlp": 500, "cnn": 200, "lstm": 500, "transformer": 200}


@functools.cache
def digits(which):
    found = tensors(DATA / f"digits_{which}.safetensors")
    return found["images"], found["labels"]


@functools.cache
def trained(name):
    torch.manual_seed(11)
    images, labels = digits("train")
    model = MODELS[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS[name])
    for _ in range(STEPS[name]):
        at = torch.randint(len(images), (64,))
        loss = F.cross_entropy(model(images[at]), labels[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model):
    """In percent, on the test set."""
    images, labels = digits("test")
    return 100 * (model(images).argmax(1) == labels).double().mean().item()


def batches():
    """Of training images: 320."""
    return list(digits("train")[0][:320].split(64))


def quantized(name, kind):
    options = {"int8 dynamic": {"dynamic": True}, "int4": {"bits": 4},
               "int8 static": {"calibration_data": batches(), "num_calibration_samples": 320}}  # fmt: skip
    return quantize(trained(name), **options[kind])


def test_no_test_image_was_trained_on():
    (train, _), (test, labels) = digits("train"), digits("test")
    assert train.shape == (1597, 8, 8) and len(labels) == 200
    assert not (train.flatten(1)[:, None] == test.flatten(1)).all(-1).any()


@pytest.mark.parametrize("name", MODELS)
def test_quantized_models_still_read_digits(name):
    before = accuracy(trained(name))
    found = {kind: accuracy(quantized(name, kind).model) for kind in ALLOWED}
    print(f"\n{name}: float32 {before:.1f} %", *(f"{kind} {percent:.1f} %" for kind, percent in found.items()), sep=", ")
    assert before >= 95
    for kind, percent in found.items():
        assert percent >= before - ALLOWED[kind] - 1e-9, kind


def layers_of(result, model):
    """Name, weight and (q − z)·s in float64, of every quantized weight."""
    state = {n: t for n, t in result.model.state_dict().items()}
    for name, weight in model.state_dict().items():
        if f"{name}_scale" in state:
            bits = 4 if f"{name}_packed" in state else 8
            yield name, weight.flatten(1).double().numpy(), decoded(state, name, bits)


@pytest.mark.parametrize("kind", ALLOWED)
@pytest.mark.parametrize("name", MODELS)
def test_reported_numbers_are_true(name, kind):
    model, result = trained(name), quantized(name, kind)
    images = digits("test")[0]
    found = result.validate(model, sample_input=images)
    layers = list(layers_of(result, model))
    info, signal, noise = result.info, 0.0, 0.0
    assert set(info.layer_sqnr_db) == set(found.layer_sqnr_db) == {n for n, _, _ in layers}
    for weight_name, x, y in layers:
        signal, noise = signal + (x**2).sum(), noise + ((x - y) ** 2).sum()
        # the engine computes x̂ in float32, this test in float64
        assert info.layer_sqnr_db[weight_name] == pytest.approx(sqnr_db(x, y), abs=2e-3)
        assert found.layer_sqnr_db[weight_name] == pytest.approx(sqnr_db(x, y), abs=2e-3)
    overall = 10 * math.log10(signal / noise)
    assert info.sqnr_db == pytest.approx(overall, abs=2e-3) and found.sqnr_db == pytest.approx(overall, abs=2e-3)
    largest = max(abs(x - y).max() for _, x, y in layers)
    assert info.max_error == found.max_error == pytest.approx(largest, rel=1e-4)
    before, after = (sum(t.nbytes for t in m.state_dict().values()) for m in (model, result.model))
    assert info.original_size_mb == found.original_size_mb == before / 2**20
    assert info.quantized_size_mb == found.quantized_size_mb == after / 2**20
    assert info.compression_ratio == found.compression_ratio == before / after
    with torch.no_grad():
        expected, outputs = model(images).double(), result.model(images).double()
    wanted = ((expected - outputs).norm() / expected.norm()).item()
    assert info.output_error == found.output_error == pytest.approx(wanted, rel=1e-9)
    assert found.output_sqnr_db == pytest.approx(-20 * math.log10(wanted), rel=1e-9)
    assert found.ran and found.passed and not found.warnings


def test_validation_finds_what_is_wrong():
    model, images = trained("mlp"), digits("test")[0]
    result = quantized("mlp", "int8 dynamic")
    result.model[1]._buffers["weight_scale"] *= 5
    found = validate_quantization(model, result, sample_input=images)
    assert found.layer_sqnr_db["1.weight"] < 0 and any("outputs differ" in w for w in found.warnings)
    result.model[1]._buffers["weight_scale"][0] = math.nan
    errors = validate_quantization(model, result, on_failure="ignore").errors
    assert errors[0] == "1.weight_scale: scale 0 is not finite" and "not finite in 1.weight_scale" in errors[1]
    broken = quantized("mlp", "int8 dynamic")
    del broken.model[5]
    errors = validate_quantization(model, broken, sample_input=images, on_failure="ignore").errors
    assert any("missing" in e for e in errors) and any("other shapes" in e for e in errors)


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_static_scales_are_what_the_observer_says_and_change_the_result(name):
    model, images = trained(name), digits("test")[0]
    seen, hooks = {}, []
    dynamic = quantized(name, "int8 dynamic").model
    result = quantize(model, calibration_data=batches(), num_calibration_samples=320, observer="minmax")
    static = {n: m for n, m in result.model.named_modules() if isinstance(m, QuantizedModule) and m.inputs == "static"}
    assert len(static) >= 3 and result.info.calibration_samples_used == 320
    for layer in static:
        def keep(_, args, layer=layer):
            low, high = seen.get(layer, (0.0, 0.0))
            seen[layer] = min(low, args[0].min().item()), max(high, args[0].max().item())
        hooks.append(model.get_submodule(layer).register_forward_pre_hook(keep))  # fmt: skip
    with torch.no_grad():
        for batch in batches():
            model(batch)
    for hook in hooks:
        hook.remove()
    assert seen.keys() == static.keys()
    for layer, module in static.items():  # section 7 of the formats: max|x| over half of the codes' range
        assert module.input_scale.item() == pytest.approx(max(-seen[layer][0], seen[layer][1]) / 127.5, rel=1e-6)
    statistics = calibrate(model, batches(), num_calibration_samples=320)
    histogram = quantized(name, "int8 static").model
    for layer in static:
        scale, _ = statistics.observers[layer].calculate_qparams(symmetric=True)
        assert histogram.get_submodule(layer).input_scale.item() == scale.item()
    with torch.no_grad():
        exact, outputs = model(images), result.model(images)
        assert not torch.equal(outputs, dynamic(images))
        for module in static.values():
            module._buffers["input_scale"] *= 0.05  # inputs saturate
        worse = result.model(images)
    assert (worse - exact).norm() > 3 * (outputs - exact).norm()


def test_layers_that_calibration_never_reached_stay_float_and_are_named():
    result = quantized("transformer", "int8 static")
    missed = [f"encoder.layers.{i}.self_attn.out_proj" for i in range(2)]  # attention uses its weight without a call
    for name in missed:
        assert type(result.model.get_submodule(name)).__name__ == "NonDynamicallyQuantizableLinear"
        assert result.info.skip_reasons[f"{name}.weight"] == "not reached by calibration"
        assert any(name in warning for warning in result.info.warnings)
