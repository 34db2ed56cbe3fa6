"""ggml's own quantization, called through ctypes, beside monoquant's: the same blocks, or blocks that lose no more."""

import gguf
import numpy as np
import pytest
import torch
from gguf_model import (
    decoded,
    keys,
    llama_quantize,
    log_probabilities,
    quantize_chunk,
    save_wide_llama,
    stored,
    write_gguf,
)
from helpers import quantize, relative_error, sqnr_db

Kind = gguf.GGMLQuantizationType
FILE_TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "q4_k_s": 14, "q4_k_m": 15, "q6_k": 18}
K_QUANTS = (Kind.Q4_K, Kind.Q6_K)
presets = pytest.mark.parametrize("preset", FILE_TYPES)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide")
    return write_gguf(save_wide_llama(path / "model"), path / "wide.gguf", torch.float32)


@presets
def test_blocks_are_ggmls_or_lose_no_more(preset, model, tmp_path):
    quantize(model, tmp_path / "q.gguf", "--preset", preset)
    originals = stored(model)
    compared = 0
    for name, tensor in stored(tmp_path / "q.gguf").items():
        if tensor.tensor_type == Kind.F32:
            continue
        weight = decoded(originals[name])
        theirs = quantize_chunk(weight, tensor.tensor_type)
        compared += 1
        if tensor.tensor_type in K_QUANTS:
            reference = gguf.quants.dequantize(theirs, tensor.tensor_type)
            assert sqnr_db(weight, decoded(tensor)) >= sqnr_db(weight, reference), (name, tensor.tensor_type)
        else:
            assert np.array_equal(tensor.data, theirs), (name, tensor.tensor_type)
    assert compared == 30


@pytest.fixture(scope="module", params=[(4, False), (19, True)], ids=["4 layers", "19 layers, tied"])
def deep(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("deep")
    return write_gguf(save_wide_llama(path / "model", *request.param), path / "deep.gguf", torch.bfloat16)


@presets
def test_mixtures_are_llama_quantizes(preset, deep, tmp_path):
    """The same type for every tensor; where llama-quantize takes Q5_K, Q6_K stands."""
    model = deep
    quantize(model, tmp_path / "q.gguf", "--preset", preset)
    llama_quantize(model, tmp_path / "llama.gguf", FILE_TYPES[preset])
    ours, theirs = stored(tmp_path / "q.gguf"), stored(tmp_path / "llama.gguf")
    expected = {n: Kind.Q6_K if t.tensor_type == Kind.Q5_K else t.tensor_type for n, t in theirs.items()}
    assert {name: tensor.tensor_type for name, tensor in ours.items()} == expected
    for name in ("general.file_type", "general.quantization_version"):
        assert keys(tmp_path / "q.gguf")[name] == keys(tmp_path / "llama.gguf")[name]
    for name, tensor in theirs.items():
        if tensor.tensor_type in (Kind.Q4_0, Kind.Q4_1, Kind.Q8_0):
            assert np.array_equal(tensor.data, ours[name].data), name


@pytest.mark.parametrize("preset", ["q4_k_s", "q4_k_m", "q6_k"])
def test_logits_are_as_near_as_llama_quantizes(preset, model, tmp_path):
    quantize(model, tmp_path / "q.gguf", "--preset", preset)
    llama_quantize(model, tmp_path / "llama.gguf", FILE_TYPES[preset])
    original = log_probabilities(model)
    ours, theirs = (relative_error(log_probabilities(tmp_path / f), original) for f in ("q.gguf", "llama.gguf"))
    assert ours < 1.15 * theirs


def matrices() -> dict[str, np.ndarray]:
    """Rows that are hard in different ways, in blocks of 256."""
    random = np.random.default_rng(0)
    plain = random.standard_normal((64, 1024)).astype(np.float32) * np.float32(0.02)
    outliers = plain.copy()
    outliers[::2, ::37] *= 300
    shifted = np.abs(plain) * np.float32(0.5) + np.float32(0.01)
    laplace = random.laplace(size=(64, 1024)).astype(np.float32) * np.float32(0.01)
    sparse = np.where(random.random((64, 1024)) < 0.9, 0, plain).astype(np.float32)
    scattered = plain * np.exp2(random.uniform(-12, 0, (64, 1024))).astype(np.float32)
    zeros = plain.copy()
    zeros[:, 256:512] = 0
    return {
        "plain": plain,
        "outliers": outliers,
        "shifted": shifted,
        "laplace": laplace,
        "sparse": sparse,
        "scattered": scattered,
        "zeros": zeros,
    }


@pytest.mark.parametrize(
    "preset, kind",
    [
        ("q8_0", Kind.Q8_0),
        ("q4_0", Kind.Q4_0),
        ("q4_1", Kind.Q4_1),
        ("q4_k_s", Kind.Q4_K),
        ("q6_k", Kind.Q6_K),
    ],
)
def test_hard_matrices(preset, kind, tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_block_count(1)
    sources = matrices()
    for name, matrix in sources.items():
        writer.add_tensor(f"blk.0.{name}.weight", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", "--preset", preset)
    found = stored(tmp_path / "q.gguf")
    for name, matrix in sources.items():
        tensor = found[f"blk.0.{name}.weight"]
        assert tensor.tensor_type == kind, name
        theirs = quantize_chunk(matrix, kind)
        if kind in K_QUANTS:
            reference = sqnr_db(matrix, gguf.quants.dequantize(theirs, kind))
            assert sqnr_db(matrix, decoded(tensor)) >= reference, name
        else:
            assert np.array_equal(tensor.data, theirs), name
