"""Checkpoints of torch: read bit for bit as torch reads them, and written so that torch reads them."""

import collections
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import warnings
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from helpers import BINARY, TINY_LLAMA, compare, dequantize, metadata, monoquant, quantize, tensors

# A cast of one tensor is the least that quantize does: all others come out as they are.
CAST = ("--preset", "bf16", "--include", "^cast$", "--device", "cpu")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_same(found: dict, expected: dict):
    """Equal names, dtypes, shapes and bits; `cast` as bfloat16."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        tensor = tensor.bfloat16() if name == "cast" else tensor
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert tensor.numel() == 0 or torch.equal(bits(found[name]), bits(tensor)), name


def every_kind() -> collections.OrderedDict:
    """Dtypes, views, shared storages, strange strides, scalars, nothing."""
    whole, flat = torch.randn(10, 64, 48), torch.randn(1000)
    state = collections.OrderedDict(cast=torch.randn(5, 7))
    for dtype in [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]:
        state[f"{dtype}"] = torch.randn(33, 5).to(dtype)
    for dtype in [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]:
        state[f"{dtype}"] = torch.randint(0, 2, (33, 5)).to(dtype)
    state["transposed"] = whole[1].t()
    state["slice"] = whole[3]
    state["every other"] = whole[:, ::2, 5:40]
    state["permuted"] = whole.permute(2, 0, 1)
    state["channels last"] = torch.randn(8, 6, 3, 5).contiguous(memory_format=torch.channels_last)
    state["expanded"] = torch.randn(1, 5).expand(4, 5)
    state["diagonal"] = whole[0].diagonal()
    state["windows"] = flat.as_strided((30, 20), (10, 1), 3)
    state["first half"], state["second half"] = flat[:500], flat[500:].view(20, 25)
    state["scalar"], state["empty"] = torch.tensor(3.5), torch.zeros(0, 4)
    state["parameter"] = nn.Parameter(torch.randn(3, 3))
    state["with attribute"] = nn.Parameter(torch.randn(3, 3))
    state["with attribute"].tag = "x"
    state["naïve.名.weight"] = torch.randn(2, 2)
    return state


def new_dtypes() -> dict:
    """Those for which torch has no old class of storages."""
    eight = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
    wide = [torch.uint16, torch.uint32, torch.uint64]
    state = {f"{dtype}": torch.randn(9).to(dtype) for dtype in eight}
    state |= {f"{dtype}": torch.randint(0, 99, (9,)).to(dtype) for dtype in wide}
    return state | {"e8m0": torch.tensor([1.0, 2.0, 0.5]).to(torch.float8_e8m0fnu)}


@pytest.mark.parametrize("extension", ["safetensors", "pt"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_kind_of_tensor_is_read_bit_for_bit(tmp_path, legacy, extension):
    state = every_kind() | ({} if legacy else new_dtypes())
    file, out = tmp_path / "m.pt", tmp_path / f"out.{extension}"
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    quantize(file, out, *CAST)
    found = load_file(out) if extension == "safetensors" else torch.load(out, weights_only=True)
    assert_same(found, state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, protocol):
    state = every_kind()
    torch.save(state, tmp_path / "m.pth", pickle_protocol=protocol)
    quantize(tmp_path / "m.pth", tmp_path / "o.safetensors", *CAST)
    assert_same(load_file(tmp_path / "o.safetensors"), state)


def test_what_safetensors_cannot_hold_goes_into_a_pt(tmp_path):
    state = {"cast": torch.randn(2), "z": torch.randn(3, dtype=torch.complex128), "h": torch.zeros(2, dtype=torch.complex32)}
    torch.save(state, tmp_path / "m.pt")
    done = subprocess.run([BINARY, "quantize", "-m", tmp_path / "m.pt", "-o", tmp_path / "o.safetensors", *CAST],
                          capture_output=True, text=True)
    assert done.returncode == 2 and "z: safetensors has no complex128; --output NAME.pt can hold it" in done.stderr
    quantize(tmp_path / "m.pt", tmp_path / "o.pt", *CAST)
    assert_same(torch.load(tmp_path / "o.pt", weights_only=True), state)


def test_our_archives_are_torchs(tmp_path):
    """By weights_only, by mmap, by computed offsets, by zip; tied names share one storage."""
    weight = torch.randn(64, 128)
    state = {"embed.weight": weight, "cast": torch.randn(100), "head.weight": weight, "odd": torch.arange(7, dtype=torch.int8)}
    torch.save(state, tmp_path / "m.pt")
    report = quantize(tmp_path / "m.pt", tmp_path / "o.pt", *CAST)
    assert any("head.weight is the same as embed.weight: written once" in note for note in report["notes"])
    assert zipfile.ZipFile(tmp_path / "o.pt").testzip() is None
    for mmap in [False, True]:
        found = torch.load(tmp_path / "o.pt", weights_only=True, mmap=mmap)
        assert_same(found, state)
        assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    check = f"""
import torch
from torch.utils.serialization import config
config.load.calculate_storage_offsets = True
torch.load({str(tmp_path / "o.pt")!r}, weights_only=True, mmap=True)
torch.load({str(tmp_path / "o.pt")!r}, weights_only=True)
"""
    subprocess.run([sys.executable, "-c", check], check=True, env={"TORCH_SERIALIZATION_DEBUG": "1"})
    assert json.loads(found.monoquant)["recipe"]["preset"] == "bf16"


def test_tied_tensors_are_written_once_and_come_back(tmp_path):
    linear, other = torch.randn(32, 64), torch.randn(32, 64)
    state = {"a.weight": linear, "b.weight": linear, "c.weight": other}
    torch.save(state, tmp_path / "m.pt")
    report = quantize(tmp_path / "m.pt", tmp_path / "q.safetensors", "--bits", "8")
    stored = load_file(tmp_path / "q.safetensors")
    assert set(stored) == {"a.weight", "a.weight_scale", "c.weight", "c.weight_scale"}
    assert any("b.weight is the same as a.weight: written once" in note for note in report["notes"])
    assert json.loads(metadata(tmp_path / "q.safetensors")["monoquant"])["tied"] == {"b.weight": "a.weight"}
    quantize(tmp_path / "m.pt", tmp_path / "q.pt", "--bits", "8")
    again = torch.load(tmp_path / "q.pt", weights_only=True)
    assert set(again) == {f"{n}.{p}" for n in "abc" for p in ["weight", "weight_scale"]}
    assert again["a.weight"].data_ptr() == again["b.weight"].data_ptr()
    for quantized in ["q.safetensors", "q.pt"]:
        floats = torch.load(dequantize(tmp_path / quantized, tmp_path / "f.pt", "--force"), weights_only=True)
        assert set(floats) == set(state) and torch.equal(floats["a.weight"], floats["b.weight"])
        assert torch.equal(floats["a.weight"], stored["a.weight"] * stored["a.weight_scale"])


def test_a_training_checkpoint(tmp_path):
    """Weights under a usual key and behind `module.`, optimizer, numbers and strings beside them."""
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 8))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 64)).sum().backward()
    optimizer.step()
    weights = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    checkpoint = {"epoch": 3, "model_state_dict": weights, "optimizer": optimizer.state_dict(), "best": 0.25,
                  "name": "run", "path": pathlib.PurePosixPath("a/b"), "args": __import__("argparse").Namespace(lr=0.1)}
    for legacy in [False, True]:
        torch.save(checkpoint, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy)
        report = quantize(tmp_path / "c.pt", tmp_path / "o.pt", "--preset", "fp16", "--include", "^2.bias$", "--force")
        notes = "\n".join(report["notes"])
        assert "the weights are those under `model_state_dict`" in notes
        assert "beside the weights, and left out: `epoch (whole number)`, `optimizer (dict)`, `best (float)`" in notes
        assert "every name began with `module.`, which is taken off" in notes
        found = torch.load(tmp_path / "o.pt", weights_only=True)
        assert set(found) == set(model.state_dict())
        assert torch.equal(found["0.weight"], model.state_dict()["0.weight"])
        model.load_state_dict(found)


def test_several_models_in_one_file(tmp_path):
    """Two state dicts under names of their own are one with both prefixes."""
    parts = {"encoder": nn.Linear(8, 8).state_dict(), "decoder": nn.Linear(8, 4).state_dict(), "step": 5}
    torch.save(parts, tmp_path / "m.pt")
    names = [item["name"] for item in json.loads(monoquant("inspect", "--json", tmp_path / "m.pt"))["items"]]
    assert names == ["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"]
    torch.save({"ema of something": nn.Linear(8, 8).state_dict(), "step": 5}, tmp_path / "m.pt")
    names = [item["name"] for item in json.loads(monoquant("inspect", "--json", tmp_path / "m.pt"))["items"]]
    assert names == ["weight", "bias"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rnn = nn.Linear(16, 16), nn.LSTM(16, 8, num_layers=2)
            self.register_buffer("mean", torch.randn(16))
            self.second = self.first

        def forward(self, x):
            return self.rnn(self.second(self.first(x - self.mean)))[0]

    model = torch.jit.script(Shared())
    model.save(tmp_path / "m.pt")
    report = quantize(tmp_path / "m.pt", tmp_path / "o.pt", "--preset", "bf16", "--include", "^mean$")
    assert "TorchScript: parameters, buffers and other tensors are read" in report["notes"][0]
    expected = {k: v.bfloat16() if k == "mean" else v for k, v in torch.jit.load(tmp_path / "m.pt").state_dict().items()}
    assert_same(torch.load(tmp_path / "o.pt", weights_only=True), expected)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pickled_modules_are_refused_by_name(tmp_path, legacy):
    class Evil:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "ran",))

    for what, named in [(nn.Sequential(nn.Linear(2, 2)), "torch.nn.modules.container.Sequential"),
                        ({"w": torch.randn(2), "x": collections.Counter("ab")}, None),
                        ({"w": torch.randn(2), "x": Evil()}, "builtins.getattr"),
                        ({"w": torch.randn(2), "x": warnings.warn}, "_warnings.warn")]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(what, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
        done = subprocess.run([BINARY, "inspect", tmp_path / "m.pt"], capture_output=True, text=True)
        if named is None:
            assert done.returncode == 0
            continue
        assert done.returncode == 2 and f"holds a pickled `{named}`" in done.stderr, done.stderr
        assert "torch.save(model.state_dict()" in done.stderr and "nothing was run" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_plain_data_are_refused_by_name(tmp_path):
    for tensor, why in [(torch.randn(4, 4).to_sparse(), "is sparse"),
                        (torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8), "is quantized by torch"),
                        (torch.empty(3, device="meta"), "on the device `meta`"),
                        (torch.randn(3, dtype=torch.complex64).conj(), "conjugated")]:
        torch.save({"fine": torch.randn(2), "w.x": tensor}, tmp_path / "m.pt")
        done = subprocess.run([BINARY, "inspect", tmp_path / "m.pt"], capture_output=True, text=True)
        assert done.returncode == 2 and "tensor `w.x`" in done.stderr and why in done.stderr, done.stderr
    for what, kind in [(torch.randn(3), "single tensor"), ([torch.randn(3)], "list"), ({}, "dict without tensors"), (5, "whole number")]:
        torch.save(what, tmp_path / "m.pt")
        done = subprocess.run([BINARY, "inspect", tmp_path / "m.pt"], capture_output=True, text=True)
        assert done.returncode == 2 and kind in done.stderr, done.stderr


def test_beyond_two_gigabytes(tmp_path):
    """A tensor of 2.2 GB, sparse on the disk, and one behind it."""
    state = {"big": torch.empty(2_200_000_000, dtype=torch.uint8), "cast": torch.zeros(1000)}
    with torch.serialization.skip_data():
        torch.save(state, tmp_path / "m.pt")
    del state["big"]
    reader = torch._C.PyTorchFileReader(str(tmp_path / "m.pt"))
    end = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    cast = torch.randn(1000)
    with open(tmp_path / "m.pt", "r+b") as file:
        file.seek(reader.get_record_offset("data/0") + 2_200_000_000 - 4)
        file.write(bytes(end.tolist()))
        file.seek(reader.get_record_offset("data/1"))
        file.write(cast.numpy().tobytes())
    del reader
    quantize(tmp_path / "m.pt", tmp_path / "o.safetensors", *CAST)
    with safe_open(tmp_path / "o.safetensors", "pt") as out:
        big = out.get_slice("big")
        assert big.get_shape() == [2_200_000_000]
        assert torch.equal(big[2_199_999_990:], torch.cat([torch.zeros(6, dtype=torch.uint8), end]))
        assert torch.equal(out.get_tensor("cast"), cast.bfloat16())


def test_a_directory_of_shards_gives_the_same_bytes_as_safetensors(tmp_path):
    state = tensors(TINY_LLAMA)
    shards = [dict(list(state.items())[i::2]) for i in range(2)]
    model = tmp_path / "bin"
    shutil.copytree(TINY_LLAMA, model, ignore=shutil.ignore_patterns("*.safetensors*"))
    weight_map = {}
    for i, shard in enumerate(shards):
        name = f"pytorch_model-{i + 1:05}-of-00002.bin"
        torch.save(shard, model / name)
        weight_map |= dict.fromkeys(shard, name)
    (model / "training_args.bin").write_bytes(b"\x80\x02cos\nsystem\n.")
    (model / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    report = quantize(model, tmp_path / "q", "--bits", "4")
    assert ["training_args.bin", "state of a training run"] in report["left_out"]
    quantize(TINY_LLAMA, tmp_path / "expected", "--bits", "4")
    assert sorted(p.name for p in (tmp_path / "q").iterdir()) == sorted(p.name for p in (tmp_path / "expected").iterdir())
    found, expected = tensors(tmp_path / "q"), tensors(tmp_path / "expected")
    assert all(torch.equal(found[name], expected[name]) for name in expected) and set(found) == set(expected)
    (model / "pytorch_model.bin.index.json").unlink()
    names = [item["name"] for item in json.loads(monoquant("inspect", "--json", model))["items"]]
    assert sorted(names) == sorted(state)


def test_every_command_takes_either_container(tmp_path):
    torch.manual_seed(1)
    state = {f"l{i}.weight": torch.randn(64, 128) for i in range(3)} | {"norm.weight": torch.randn(128)}
    torch.save(state, tmp_path / "m.pt")
    save_file(state, tmp_path / "m.safetensors")
    results = {}
    for source in ["pt", "safetensors"]:
        for target in ["pt", "safetensors"]:
            out = tmp_path / f"{source}.{target}"
            quantize(tmp_path / f"m.{source}", out, "--bits", "4", "--scheme", "asymmetric")
            results[source, target] = torch.load(out, weights_only=True) if target == "pt" else load_file(out)
            monoquant("validate", out)
            difference = compare(tmp_path / "m.pt", out)
            assert 15 < difference["sqnr_db"] < 25 and not any(difference["only"])
            floats = dequantize(out, tmp_path / f"f.{target}", "--force")
            assert compare(out, floats)["sqnr_db"] == 999
    for found in results.values():
        assert_same(found, results["pt", "pt"])
    # the default name is beside the input, of its kind
    monoquant("quantize", "-q", "-m", tmp_path / "m.pt", "--bits", "8")
    assert set(torch.load(tmp_path / "m-w8a8.pt", weights_only=True)) >= {"l0.weight", "l0.weight_scale"}


def published(package: str, file: str) -> pathlib.Path:
    return pathlib.Path(importlib.util.find_spec(package).submodule_search_locations[0]) / file


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("package", "file", "key"),
    [("facenet_pytorch", "data/onet.pt", None), ("facenet_pytorch", "data/pnet.pt", None),
     ("facenet_pytorch", "data/rnet.pt", None), ("resemblyzer", "pretrained.pt", "model_state"),
     ("silero_vad", "data/silero_vad.jit", "script")])
def test_published_files(tmp_path, package, file, key):
    path = published(package, file)
    if key == "script":
        module = torch.jit.load(path)
        # attributes that are tensors, but neither parameters nor buffers
        expected = {"_state": module._state, "_context": module._context} | module.state_dict()
    else:
        loaded = torch.load(path, weights_only=True, map_location="cpu")
        expected = loaded[key] if key else loaded
    cast = list(expected)[-1]
    quantize(path, tmp_path / "o.pt", "--preset", "bf16", "--include", f"^{cast}$")
    assert_same(torch.load(tmp_path / "o.pt", weights_only=True),
                {k: v.bfloat16() if k == cast else v for k, v in expected.items()})
    assert compare(path, tmp_path / "o.pt")["only"] == [[], []]
