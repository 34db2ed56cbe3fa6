"""Files of the Python API: saved, loaded without running anything in them, the same bytes as the command line's."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from helpers import decoded, metadata, monoquant, tensors
from mono_quant import (
    ConfigurationError, InputError, QuantizationError, dequantize_model, load_model, quantize, revert_to_standard_modules,
    save_model,
)  # fmt: skip
from safetensors.torch import load_file, save_file
from test_api import LAYERS, Deep, Sharing, error, llama, quantized_names, run
from torch import nn

FORMATS = pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
KINDS = {
    "int8": {"dynamic": True}, "int8 asymmetric": {"dynamic": True, "scheme": "asymmetric"}, "int4": {"bits": 4},
    "int4 asymmetric": {"bits": 4, "scheme": "asymmetric"}, "fp16": {"bits": 16},
    "tensor": {"dynamic": True, "per_channel": False}, "groups": {"dynamic": True, "group_size": 16},
    "mixed": {"dynamic": True, "overrides": {"first": {"bits": 4}, "out": {"bits": 16}}},
}  # fmt: skip
EACH = pytest.mark.parametrize("kind", KINDS)


class Many(nn.Module):
    """Every class that can be quantized, a buffer that files do not have, and numbers that count."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(20, 16), nn.LSTM(16, 16, 2, bidirectional=True, batch_first=True)
        self.conv, self.up = nn.Conv1d(32, 16, 3, padding=1), nn.ConvTranspose1d(16, 16, 2, 2)
        self.norm, self.gru = nn.BatchNorm1d(16), nn.GRU(16, 8, batch_first=True)
        self.out = nn.Linear(8, 32)
        self.register_buffer("position", torch.linspace(0, 1, 16), persistent=False)

    def forward(self, ids):
        x = self.lstm(self.embed(ids) + self.position)[0]
        x = self.norm(self.up(self.conv(x.transpose(1, 2)))).transpose(1, 2)
        return self.out(self.gru(x)[0])


ALL = {"layer_types": ["linear", "conv1d", "convtranspose", "lstm", "gru", "embedding"]}


@FORMATS
@EACH
def test_saved_and_loaded_modules_compute_the_same(kind, ending, tmp_path):
    model, ids = Many().eval(), torch.randint(0, 20, (2, 5))
    options = KINDS[kind] | ({} if kind == "fp16" else ALL)
    result = quantize(model, **options)
    expected = run(result.model, ids)
    path = result.save(tmp_path / f"m.{ending}")
    filled = load_model(path, Many())
    assert torch.equal(run(filled, ids), expected) and not filled.training
    assert quantized_names(filled) == quantized_names(result.model)
    assert {n: b.dtype for n, b in filled.state_dict().items()} == {n: b.dtype for n, b in result.model.state_dict().items()}
    assert filled.norm.num_batches_tracked.dtype == torch.int64
    state = load_model(str(path))
    assert state.keys() == result.model.state_dict().keys()
    assert all(torch.equal(state[n], t) for n, t in result.model.state_dict().items())
    again = save_model(filled, tmp_path / f"again.{ending}")
    assert all(torch.equal(load_model(again)[n], t) for n, t in state.items())
    first, second = (json.loads(monoquant("inspect", "--json", p)) for p in (path, again))
    assert first["recipe"] == second["recipe"] and first["bytes"] == second["bytes"]


@FORMATS
def test_static_scales_are_in_the_file(ending, tmp_path):
    model, x = Deep().eval(), torch.randn(20, 32)
    for scheme in ("symmetric", "asymmetric"):
        result = quantize(model, calibration_data=[x], activation_scheme=scheme)
        path = result.save(tmp_path / f"{scheme}.{ending}")
        filled = load_model(path, Deep().eval())
        assert torch.equal(run(filled, x), run(result.model, x)) and filled.out.inputs == "static"
        assert "out.input_scale" in load_model(path)
        assert ("out.input_zero_point" in load_model(path)) == (scheme == "asymmetric")


@EACH
def test_the_recipe_is_in_the_file(kind, tmp_path):
    result = quantize(Deep(), **KINDS[kind], skip=["heads"])
    for ending in ("safetensors", "pt"):
        path = save_model(result, tmp_path / f"m.{ending}", metadata={"author": "me"})
        recipe = json.loads(monoquant("inspect", "--json", path))["recipe"]
        assert recipe["exclude"] == [r"(^|\.)heads(\.|$)"]
        if kind == "fp16":
            assert recipe["method"] == {"cast": "float16"}
        else:
            found = recipe["method"]["quantize"]
            assert found["bits"] == KINDS[kind].get("bits", 8) 
            assert found["observer"] == ({"mse": {"both_signs": True}} if found["bits"] == 4 else "minmax")
            assert found["symmetric"] == (KINDS[kind].get("scheme") != "asymmetric")
    assert metadata(tmp_path / "m.safetensors")["author"] == "me"


BYTES = [(bits, scheme) for bits in (8, 4) for scheme in ("symmetric", "asymmetric")] + [(16, None)]
SCHEMES = pytest.mark.parametrize("bits, scheme", BYTES)


def same_bytes(model, options, arguments, tmp_path):
    """A module saves what the command line makes of its state dict, from either kind of file to either kind."""
    result = quantize(model, **options)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    once = {t.data_ptr(): n for n, t in reversed(model.state_dict().items())}  # tied tensors under their first name
    save_file({n: t for n, t in model.state_dict().items() if n in once.values()}, tmp_path / "m.safetensors")
    for ending in ("safetensors", "pt"):
        ours = result.save(tmp_path / f"ours.{ending}")
        theirs = tmp_path / f"theirs.{ending}"
        monoquant("quantize", "-m", tmp_path / "m.pt", "-o", theirs, "--force", *arguments)
        assert ours.read_bytes() == theirs.read_bytes()
        written = quantize(tmp_path / "m.pt", output=tmp_path / f"file.{ending}", **options)
        assert written.path.read_bytes() == theirs.read_bytes()
    # safetensors sorts names, so only the tensors are the same
    monoquant("quantize", "-m", tmp_path / "m.safetensors", "-o", tmp_path / "sorted.safetensors", *arguments)
    ours, theirs = tensors(tmp_path / "ours.safetensors"), tensors(tmp_path / "sorted.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@SCHEMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_llama_saves_the_bytes_of_the_command_line(bits, scheme, dtype, tmp_path):
    options = {"bits": bits, "dynamic": bits == 8} | ({"scheme": scheme} if scheme else {})
    arguments = ["--bits", bits, *(["--scheme", scheme, "--on-mismatch", "shrink"] if scheme else [])]
    same_bytes(llama().to(dtype), options, arguments, tmp_path)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_llama_with_a_tied_head_saves_the_bytes_of_the_command_line(bits, tmp_path):
    same_bytes(llama(tie_word_embeddings=True), {"bits": bits, "dynamic": bits == 8}, ["--bits", bits], tmp_path)


def test_a_llama_with_a_tied_head_saves_the_bytes_of_the_command_line_at_4_bits(tmp_path):
    same_bytes(llama(tie_word_embeddings=True), {"bits": 4}, ["--bits", 4, "--on-mismatch", "shrink"], tmp_path)


@SCHEMES
def test_an_mlp_saves_the_bytes_of_the_command_line(bits, scheme, tmp_path):
    model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 40), nn.ReLU(), nn.Linear(40, 8))
    if bits == 16:
        return same_bytes(model, {"bits": 16}, ["--bits", 16], tmp_path)
    options = {"bits": bits, "dynamic": bits == 8, "scheme": scheme, "layer_types": [nn.Linear],
               "layer_names": ["0", "2"], "group_size": 64}
    arguments = ["--bits", bits, "--scheme", scheme, "--on-mismatch", "shrink", "--group-size", 64]
    arguments += ["--include", r"(^|\.)0(\.|$)", "--include", r"(^|\.)2(\.|$)"]
    same_bytes(model, options, arguments, tmp_path)


def test_sizes_on_disk(tmp_path):
    model = nn.Sequential(*[nn.Linear(512, 512) for _ in range(4)])
    weights, biases, header = 4 * 512 * 512, 4 * 512 * 4, 8192
    sizes = {}
    for bits, ending in ((8, "safetensors"), (4, "safetensors"), (16, "safetensors"), (8, "pt"), (4, "pt")):
        result = quantize(model, bits=bits, dynamic=bits == 8, layer_names=["*"])
        file = result.save(tmp_path / f"{bits}.{ending}")
        sizes[bits] = file.stat().st_size
        stored = sum(t.nbytes for t in load_model(file).values())
        assert stored == round(result.info.quantized_size_mb * 2**20)
        assert stored <= sizes[bits] <= stored + header
    scales = {8: 4 * 512 * 4, 4: 4 * 512 * 4 * 4}  # float32: one a row; one a group of 128
    assert sizes[8] <= weights + scales[8] + biases + header
    assert sizes[4] <= weights // 2 + scales[4] + biases + header
    assert sizes[16] <= weights * 2 + biases // 2 + header
    torch.save(model.state_dict(), tmp_path / "float.pt")
    assert sizes[8] < (tmp_path / "float.pt").stat().st_size / 3.9


@FORMATS
def test_tied_weights_are_written_once_and_come_back_tied(ending, tmp_path):
    x = torch.randn(5, 32)
    for options in ({"dynamic": True}, {"bits": 4}, {"bits": 16}):
        result = quantize(Sharing(), **options)
        path = result.save(tmp_path / f"m.{ending}")
        assert path.stat().st_size < result.info.quantized_size_mb * 2**20 + 5000
        filled = load_model(path, Sharing())
        given = x.half() if options.get("bits") == 16 else x
        assert torch.equal(run(filled, given), run(result.model, given)) and filled.a is filled.b
        state = filled.state_dict()
        part = next(n for n in ("weight_packed", "weight") if f"a.{n}" in state)
        assert state[f"a.{part}"].data_ptr() == state[f"c.{part}"].data_ptr()
        assert load_model(path).keys() == state.keys()


@EACH
def test_dequantized_models_are_standard_float32_modules(kind, tmp_path):
    model = Deep()
    if kind != "fp16":
        model.to(torch.bfloat16)
    result = quantize(model, **KINDS[kind])
    floats = dequantize_model(result)
    assert {type(m) for m in floats.modules()} == {type(m) for m in model.modules()}
    assert {p.dtype for p in floats.parameters()} == {torch.float32}
    path = result.save(tmp_path / "m.safetensors")
    stored, state, bits = load_file(path), dequantize_model(path), result.info.bits
    assert state.keys() == model.state_dict().keys()
    for name, original in model.state_dict().items():
        found = floats.state_dict()[name]
        assert torch.equal(found, state[name]) or kind == "fp16", name
        if f"{name}_scale" in stored:
            width = 4 if f"{name}_packed" in stored else 8
            expected = torch.from_numpy(decoded(stored, name, width)).float()  # (q − z)·s, computed in float64
            assert torch.equal(found.flatten(1), expected), name
        else:
            assert torch.equal(found, original.to(found.dtype)) or bits == 16
    assert (quantized_names(result.model) == []) == (kind == "fp16")  # dequantizing made a copy


def test_reverted_models_run_in_the_dtype_that_they_had():
    for dtype in (torch.float32, torch.bfloat16):
        model, x = Deep(dtype=dtype).eval(), torch.randn(5, 32, dtype=dtype)
        result = quantize(model, bits=4)
        found = revert_to_standard_modules(result.model)
        assert not quantized_names(found) and run(found, x).dtype == dtype
        assert error(run(result.model, x), run(found, x)) < (1e-6 if dtype == torch.float32 else 0.02)


# What is in a file is never run


class Hostile:
    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_loading_never_runs_a_pickle(tmp_path):
    bomb = Hostile()
    bomb.target = tmp_path / "touched"
    files = {"zip.pt": {"a.weight": torch.ones(4, 4), "b": bomb}, "module.pt": nn.Linear(4, 4)}
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(bomb))
    for name in (*files, "plain.pt"):
        for call in (load_model, dequantize_model, lambda p: quantize(p, dynamic=True),
                     lambda p: load_model(p, nn.Linear(4, 4))):  # fmt: skip
            try:
                call(tmp_path / name)
            except (InputError, QuantizationError) as e:
                assert name in str(e)
    assert not bomb.target.exists()
    os.system(bomb.__reduce__()[1][0])
    assert bomb.target.exists()  # it would have worked


class Remembering(Deep):
    """Has something in its state dict that is no tensor."""

    def get_extra_state(self):
        return {"epoch": 3}

    def set_extra_state(self, state):
        assert state == {"epoch": 3}


def test_compiled_models_and_those_with_more_than_tensors(tmp_path):
    x = torch.randn(5, 32)
    for model in (torch.compile(Deep(), backend="eager"), Remembering()):
        result = quantize(model, dynamic=True, run_validation=True)
        assert result.info.selected_layers == LAYERS
        path = result.save(tmp_path / "m.safetensors")
        filled = load_model(path, model)
        assert torch.equal(run(filled, x), run(result.model, x))
        assert type(dequantize_model(result)) is type(result.model) in (Deep, Remembering)


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = quantize(Deep(), dynamic=True).save(tmp_path / "m.safetensors")
    for other in (Deep(wide=32), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4)):
        with pytest.raises(InputError, match="does not fit") as caught:
            load_model(path, other)
        assert caught.value.suggestion
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    for wrong in ("cut.safetensors", "missing.safetensors"):
        with pytest.raises(InputError, match=wrong):
            load_model(tmp_path / wrong)
    with pytest.raises(ConfigurationError):
        load_model(path, Deep)


def test_saving_refuses_what_it_cannot_write(tmp_path):
    result = quantize(Deep(), dynamic=True)
    path = result.save(tmp_path / "m.safetensors")
    before = path.read_bytes()
    for action, kind in [
        (lambda: result.save(path, overwrite=False), QuantizationError),
        (lambda: result.save(tmp_path / "m.onnx"), ConfigurationError),
        (lambda: result.save(tmp_path / "nowhere" / "m.pt"), QuantizationError),
        (lambda: save_model({"a": 1}, tmp_path / "a.pt"), InputError),
        (lambda: save_model(3, tmp_path / "a.pt"), InputError),
        (lambda: quantize(path, dynamic=True), QuantizationError),
    ]:
        with pytest.raises(kind) as caught:
            action()
        assert caught.value.suggestion, str(caught.value)
    assert path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors"]
    assert result.save(str(path)) == path  # replaced


def test_transformers_loads_what_a_llama_saved(tmp_path):
    from transformers import AutoModelForCausalLM

    model, ids = llama(), torch.randint(0, 128, (2, 9))
    model.save_pretrained(tmp_path / "m")
    result = quantize(tmp_path / "m", dynamic=True, output=tmp_path / "q")
    loaded = AutoModelForCausalLM.from_pretrained(result.path, dtype=torch.float32)
    filled = load_model(result.path, llama())
    with torch.no_grad():
        expected, ours, theirs = model(ids).logits, filled(ids).logits, loaded(ids).logits
    assert error(theirs, ours) < 0.005 and error(expected, ours) < 0.03


# Without torch

NO_TORCH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
import mono_quant
from mono_quant import MonoQuantError, QuantizationConfig, quantize
result = quantize(sys.argv[1], bits=4, output=sys.argv[2], skip=["out"], show_progress=True, group_size=16)
assert result.info.selected_layers == ["first", "body.0.0", "body.1", "heads.a", "heads.b.0"], result.info
assert result.info.sqnr_db > 15 and result.info.dtype is None and result.model is None
assert QuantizationConfig(bits=8).arguments()["bits"] == 8
for wrong in ({"bits": 5}, {"bits": 4, "output": sys.argv[2]}, {"bits": 8, "output": "x.pt"}):
    try:
        quantize(sys.argv[1], **wrong)
    except MonoQuantError as e:
        assert e.suggestion
    else:
        raise AssertionError(wrong)
try:
    mono_quant.load_model
except ModuleNotFoundError as e:
    assert e.name == "torch"
assert "torch" not in sys.modules
sys.argv = ["mq", "inspect", sys.argv[2]]
from mono_quant.__main__ import main
sys.exit(main())
"""


def test_files_need_no_torch(tmp_path):
    torch.save(Deep().state_dict(), tmp_path / "m.pt")
    arguments = [sys.executable, "-c", NO_TORCH, tmp_path / "m.pt", tmp_path / "q.safetensors"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stderr and "int4" in done.stdout
    assert quantized_names(load_model(tmp_path / "q.safetensors", Deep())) == LAYERS[:-1]
