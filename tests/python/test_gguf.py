"""GGUF models: gguf-py reads the same blocks that it would write, and llama.cpp computes with them.

tiny-llama's rows are no whole blocks of K-quants, so a wider random model stands beside it. llama.cpp's
log-probabilities on the F32 file are transformers' on the original: the file that the tests write is right.
"""

import gguf
import numpy as np
import pytest
import torch
from gguf_model import (
    decoded,
    expected_log_probabilities,
    gguf_tensors,
    keys,
    log_probabilities,
    save_wide_llama,
    stored,
    write_gguf,
)
from helpers import TINY_LLAMA, compare, dequantize, monoquant, quantize, refused, relative_error, tensors
from safetensors.torch import load_file

Kind = gguf.GGMLQuantizationType
# llama.cpp's number of a file's type
FILE_TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "q4_k_s": 14, "q4_k_m": 15, "q6_k": 18}
SIMPLE = {"q8_0": Kind.Q8_0, "q4_0": Kind.Q4_0, "q4_1": Kind.Q4_1}
MODELS = ["tiny", "wide"]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# llama.cpp quantizes inputs to 8 bits where it multiplies with blocks. Measured: at most 0.0035.
BLOCK_ERROR = 0.01

presets = pytest.mark.parametrize("preset", FILE_TYPES)
models = pytest.mark.parametrize("model", MODELS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return {"tiny": TINY_LLAMA, "wide": save_wide_llama(tmp_path_factory.mktemp("wide") / "model")}


@pytest.fixture(scope="module")
def files(directories, tmp_path_factory):
    """Both models as GGUF in each dtype."""
    path = tmp_path_factory.mktemp("gguf")
    return {
        (model, dtype): write_gguf(directories[model], path / f"{model}-{dtype}.gguf", DTYPES[dtype])
        for model in MODELS
        for dtype in DTYPES
    }


@models
@dtypes
def test_the_files_that_these_tests_write_are_right(model, dtype, directories, files):
    error = relative_error(log_probabilities(files[model, dtype]), expected_log_probabilities(directories[model]))
    assert error < {"f32": 1e-5, "f16": 0.001, "bf16": 0.005}[dtype]  # it rounds inputs to the dtype of weights


@models
@dtypes
@presets
def test_blocks_are_gguf_pys_and_metadata_stays(preset, dtype, model, files, tmp_path):
    source = files[model, dtype]
    quantize(source, tmp_path / "q.gguf", "--preset", preset)
    before, after = stored(source), stored(tmp_path / "q.gguf")
    assert list(before) == list(after)
    for name, tensor in after.items():
        assert tensor.shape.tolist() == before[name].shape.tolist()
        assert tensor.data_offset % gguf.GGUF_DEFAULT_ALIGNMENT == 0
        if len(tensor.shape) == 1:
            assert tensor.tensor_type == Kind.F32 and np.array_equal(tensor.data, before[name].data)
        elif tensor.tensor_type in SIMPLE.values():
            assert np.array_equal(tensor.data, gguf.quants.quantize(decoded(before[name]), tensor.tensor_type)), name
        else:
            assert tensor.tensor_type in (Kind.Q4_K, Kind.Q6_K), name
    if preset in SIMPLE:
        others = [t.tensor_type for name, t in after.items() if len(t.shape) == 2 and name != "output.weight"]
        assert set(others) == {SIMPLE[preset]}
    elif model == "wide":
        kinds = {tensor.tensor_type for tensor in after.values()}
        assert kinds == {Kind.F32, Kind.Q6_K} | ({Kind.Q4_K} if preset != "q6_k" else set())
    was, now = keys(source), keys(tmp_path / "q.gguf")
    assert now.pop("general.file_type") == FILE_TYPES[preset] and now.pop("general.quantization_version") == 2
    was.pop("general.file_type")
    assert {name: now.get(name) for name in was} == was
    assert all(name.startswith("monoquant.") for name in now.keys() - was.keys())


@models
@presets
def test_dequantize_is_gguf_pys(preset, model, files, tmp_path):
    quantize(files[model, "bf16"], tmp_path / "q.gguf", "--preset", preset)
    restored = stored(dequantize(tmp_path / "q.gguf", tmp_path / "d.gguf", "--dtype", "f32"))
    loose = load_file(dequantize(tmp_path / "q.gguf", tmp_path / "d.safetensors", "--dtype", "f32"))
    quantized = stored(tmp_path / "q.gguf")
    assert list(restored) == list(quantized) and loose.keys() == restored.keys()
    for name, tensor in quantized.items():
        expected = decoded(tensor)
        assert restored[name].tensor_type == Kind.F32
        assert np.array_equal(decoded(restored[name]), expected), name  # −0 is 0 here, as Q6_K has it
        assert np.array_equal(loose[name].numpy(), expected), name


@models
@presets
def test_llama_cpp_computes_with_them(preset, model, directories, files, tmp_path):
    quantize(files[model, "f32"], tmp_path / "q.gguf", "--preset", preset)
    dequantize(tmp_path / "q.gguf", tmp_path / "d.gguf", "--dtype", "f32")
    found, dense = log_probabilities(tmp_path / "q.gguf"), log_probabilities(tmp_path / "d.gguf")
    assert relative_error(found, dense) < BLOCK_ERROR
    loss = relative_error(dense, expected_log_probabilities(directories[model]))
    assert loss < (0.02 if preset in ("q8_0", "q6_k") else 0.1)  # measured: at most 0.010, and 0.043


@models
def test_bf16_and_f32_files_give_the_same_blocks(model, files, tmp_path):
    for preset in FILE_TYPES:
        blocks = {}
        for dtype in ("bf16", "f32"):
            output = tmp_path / f"{preset}-{dtype}.gguf"
            quantize(files[model, dtype], output, "--preset", preset)
            blocks[dtype] = {name: bytes(np.asarray(tensor.data).tobytes()) for name, tensor in stored(output).items()}
        assert blocks["bf16"] == blocks["f32"]


@presets
def test_compare_inspect_and_validate_read_them(preset, files, tmp_path):
    report = quantize(files["wide", "bf16"], tmp_path / "q.gguf", "--preset", preset)
    compared = compare(files["wide", "bf16"], tmp_path / "q.gguf")
    assert compared["only"] == [[], []]
    lossy = {d["name"]: d["sqnr_db"] for d in compared["differences"] if d["sqnr_db"] != 999}
    reported = {e["name"]: pytest.approx(e["sqnr_db"], abs=0.01) for e in report["tensors"] if "sqnr_db" in e}
    assert len(lossy) == 30 and lossy == reported
    monoquant("validate", tmp_path / "q.gguf")
    assert "output.weight" in monoquant("inspect", tmp_path / "q.gguf")


def test_the_order_of_rows_is_llama_cpps(directories, files):
    """q and k are permuted, nothing else is: gguf_tensors says how, and llama.cpp agreed above."""
    original = tensors(directories["tiny"])
    found = gguf_tensors(directories["tiny"])
    assert torch.equal(found["blk.0.attn_v.weight"], original["model.layers.0.self_attn.v_proj.weight"])
    q, permuted = original["model.layers.0.self_attn.q_proj.weight"], found["blk.0.attn_q.weight"]
    assert not torch.equal(q, permuted) and torch.equal(q[16], permuted[1]) and torch.equal(q[1], permuted[2])


@pytest.mark.parametrize(
    "options", [["--format", "gptq"], ["--format", "awq"], ["--preset", "w4a16"]], ids=lambda o: " ".join(o)
)
def test_layouts_that_gguf_has_not_are_refused(options, files, tmp_path):
    said = refused("quantize", "-m", files["tiny", "bf16"], "-o", tmp_path / "out.gguf", *options)
    assert "gguf" in said.lower() and not (tmp_path / "out.gguf").exists()


def test_presets_of_gguf_are_refused_for_others(tmp_path):
    said = refused("quantize", "-m", TINY_LLAMA, "-o", tmp_path / "out", "--preset", "q4_k_m")
    assert "gguf" in said.lower() and not (tmp_path / "out").exists()
