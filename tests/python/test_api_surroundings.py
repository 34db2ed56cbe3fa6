"""What surrounds a model: other devices and modes of torch, processes, threads, and what models do with their layers."""

from __future__ import annotations

import subprocess
import sys
import threading

import mono_quant
import pytest
import torch
from mono_quant import ConfigurationError, InputError, calibrate, dequantize_model, load_model, quantize
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def run(script: str) -> str:
    """What a program prints, which must end well, and soon."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_another_default_device_changes_nothing(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64))
    expected = quantize(model, bits=4).model.state_dict()
    path = tmp_path / "m.safetensors"
    quantize(model, bits=4).save(path)
    observer = mono_quant.MinMaxObserver()
    observer.observe(inputs(4, 4))
    with torch.device("meta"):
        results = [quantize(model, bits=4).model.state_dict(), load_model(path)]
        floats = dequantize_model(path)
        scale, _ = observer.calculate_qparams()
    for found in results:
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {t.device.type for t in [*floats.values(), scale]} == {"cpu"}


def freed():
    tensor = torch.randn(64, 64)
    tensor.untyped_storage().resize_(0)
    return tensor


def cut():
    tensor = torch.randn(4096, 64)
    tensor.untyped_storage().resize_(64)
    return tensor


def fake():
    with FakeTensorMode():
        return torch.randn(64, 64)


class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls):
        return torch.Tensor._make_wrapper_subclass(cls, (64, 64))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return cls()


@pytest.mark.parametrize("make", [freed, cut, fake, Wrapper, lambda: torch._efficientzerotensor((64, 64))])
def test_tensors_without_memory_are_refused(make):
    with pytest.raises(InputError, match=r"a\.weight: a tensor without memory of its own"):
        quantize({"a.weight": make()}, bits=4)


def test_tensors_inside_a_transform_are_refused():
    def inside(x):
        quantize({"a.weight": x}, bits=4)
        return x

    with pytest.raises(InputError, match="without memory"):
        torch.func.vmap(inside)(torch.randn(2, 8, 8))


@pytest.mark.parametrize("name", [5, "a\ud800"])
def test_names_that_are_no_text_are_refused(name, tmp_path):
    state = {name: torch.ones(8, 8)}
    with pytest.raises(InputError, match="the name of a tensor is"):
        mono_quant.save_model(state, tmp_path / "m.pt")
    with pytest.raises(InputError, match="name of a tensor"):
        quantize(state, bits=8, dynamic=True)


def test_a_process_that_was_forked_is_refused_and_does_not_hang():
    script = """
import multiprocessing as mp, torch, mono_quant as mq
def work(_):
    try:
        mq.quantize({"a.weight": torch.ones(64, 64)}, bits=8, dynamic=True)
    except mq.MonoQuantError as e:
        return str(e)
if __name__ == "__main__":
    work(0)
    with mp.get_context("fork").Pool(1) as pool:
        print(pool.map_async(work, [0]).get(60)[0])
"""
    assert "forked" in run(script) and "spawn" in run(script)


def test_programs_without_stderr():
    print_it = "print(mq.quantize(torch.nn.Linear(8, 8), dynamic=True).success)"
    assert run(f"import sys, torch, mono_quant as mq; sys.stderr = None; {print_it}") == "True\n"


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_zero_points_of_few_rows(rows):
    layer = nn.Linear(256, rows)
    result = quantize(layer, bits=4, scheme="asymmetric")
    decoded = dequantize_model(result).weight
    assert torch.allclose(result.model(inputs(2, 256)), nn.functional.linear(inputs(2, 256), decoded, layer.bias), atol=1e-5)
    assert (decoded - layer.weight).abs().max() < 0.02


@pytest.mark.parametrize(("bits", "scheme"), [(8, "symmetric"), (4, "symmetric"), (4, "asymmetric")])
def test_embeddings_of_nothing(bits, scheme):
    options = {"bits": bits, "scheme": scheme, "dynamic": True, "layer_types": ["embedding"]}
    nothing = torch.empty(0, dtype=torch.long)
    assert quantize(nn.Embedding(50, 256), **options).model(nothing).shape == (0, 256)
    bags = quantize(nn.EmbeddingBag(50, 256), **options).model(nothing, torch.tensor([0, 0]))
    assert torch.equal(bags, torch.zeros(2, 256))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(8, 8), inputs(2, 8)),
        (nn.Conv1d(8, 8, 3), inputs(2, 8, 9)),
        (nn.Conv2d(8, 8, 3), inputs(2, 8, 9, 9)),
        (nn.ConvTranspose1d(8, 8, 3), inputs(2, 8, 9)),
        (nn.ConvTranspose2d(8, 8, 3), inputs(2, 8, 9, 9)),
        (nn.LSTM(8, 8), inputs(3, 2, 8)),
        (nn.GRU(8, 8), inputs(3, 2, 8)),
        (nn.Embedding(9, 8), torch.tensor([1, 2])),
        (nn.EmbeddingBag(9, 8), torch.tensor([[1, 2]])),
    ],
)
def test_inputs_by_their_name_in_torch(layer, x):
    types = ["linear", "conv1d", "conv2d", "convtranspose", "lstm", "gru", "embedding"]
    model = quantize(layer, dynamic=True, layer_types=types).model
    assert type(model) is not type(layer)
    found, expected = model(input=x), model(x)
    first = [y[0] if isinstance(y, tuple) else y for y in (found, expected)]
    assert torch.equal(*first)


def test_what_models_do_with_recurrent_layers():
    for bits in (8, 4):
        lstm = nn.LSTM(128, 16)
        model = quantize(lstm, bits=bits, dynamic=True).model
        model.flatten_parameters()
        assert model.mode == "LSTM" and model.weight_ih_l0.is_floating_point()
        assert (model.weight_ih_l0 - lstm.weight_ih_l0).abs().max() < 0.05
        assert torch.equal(model.weight_hh_l0, dequantize_model(model).weight_hh_l0)
        with pytest.raises(AttributeError, match="weight_ih_l1"):
            _ = model.weight_ih_l1


def test_a_forward_of_the_module_itself_is_not_lost():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    before = model[0].forward
    model[0].forward = lambda x: before(x) * 100
    result = quantize(model, dynamic=True)
    assert result.info.selected_layers == ["1"]
    assert "a way of its own" in result.info.skip_reasons["0.weight"]
    assert torch.allclose(result.model(inputs(2, 8)), model(inputs(2, 8)), rtol=0.1, atol=1)


def test_what_a_model_noted_at_its_layer_stays():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(8, 8)
            self.f.gain = [2.0]

        def forward(self, x):
            return self.f(x) * self.f.gain[0]

    model = Model()
    made = quantize(model, dynamic=True).model
    assert made.f.gain == [2.0] and made.f.gain is not model.f.gain
    assert torch.allclose(made(inputs(2, 8)), model(inputs(2, 8)), atol=0.05)


def test_a_model_on_meta_is_filled(tmp_path):
    def net():
        return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval()

    path, result = tmp_path / "m.safetensors", quantize(net(), dynamic=True)
    result.save(path)
    with torch.device("meta"):
        empty = net()
    filled = load_model(path, empty)
    assert torch.equal(filled(inputs(2, 8)), result.model(inputs(2, 8)))
    with torch.device("meta"):
        empty[1].register_buffer("more", torch.ones(1), persistent=False)
    with pytest.raises(InputError, match=r"1\.more is on the device meta"):
        load_model(path, empty)


def test_threads_calibrate_side_by_side():
    model, failed = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)), []

    def work():
        try:
            for _ in range(5):
                calibrate(model, [inputs(16, 64)])
        except Exception as e:
            failed.append(e)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failed
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"symmetric": "no"}, "symmetric='no'"),
        ({"layer_names": []}, "layer_names names no layer"),
        ({"sqnr_warning_threshold": float("nan")}, "an SQNR threshold of nan"),
        ({"max_memory": 0}, "max_memory= is for runs from file to file"),
    ],
)
def test_options_that_say_nothing_are_refused(options, message):
    with pytest.raises(ConfigurationError) as e:
        quantize(nn.Linear(8, 8), dynamic=True, **options)
    assert message in str(e.value)


def test_a_result_of_few_columns_can_be_dequantized():
    weight = inputs(16, 3)
    floats = dequantize_model(quantize({"a.weight": weight}, bits=4))
    assert (floats["a.weight"] - weight).abs().max() < 0.5


def test_the_empty_path_is_no_model():
    with pytest.raises(InputError, match="path of a model is empty"):
        load_model("")


def test_a_calibration_of_another_model_is_warned_about(tmp_path):
    def net(*between):
        return nn.Sequential(nn.Linear(64, 64), *between, nn.Linear(64, 4))

    found, path = calibrate(net(nn.ReLU(), nn.ReLU()), [inputs(32, 64)]), tmp_path / "statistics.json"
    found.save(path)
    for calibration in (found, path):
        warnings = quantize(net(nn.ReLU()), calibration=calibration).info.warnings
        assert "the calibration has 1 layers that the model has not, such as 3" in warnings
        assert "1 layers stay float, as the calibration does not have them, such as 2.weight" in warnings
        assert not any("calibration" in text for text in quantize(net(nn.ReLU(), nn.ReLU()), calibration=calibration).info.warnings)


def test_a_state_that_is_no_tensor_is_warned_about():
    class Model(nn.Linear):
        def get_extra_state(self):
            return {"k": 5}

        def set_extra_state(self, state):
            pass

    result = quantize(nn.Sequential(Model(8, 8)), dynamic=True)
    assert result.info.warnings == ["0._extra_state is no tensor: it stays in the model, and is not saved to files"]
