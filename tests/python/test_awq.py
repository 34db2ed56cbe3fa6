"""AWQ directories (4 bit, GEMM): the bytes as an independent decoder reads them, and what gptqmodel computes.

As in test_gptq; gptqmodel's decoding here is its `dequantize_gemm`, which is AutoAWQ's.
"""

import layouts
import pytest
import torch
from helpers import TINY_LLAMA, bits_per_byte, compare, dequantize, quantize, relative_error, tensors
from loaders import F16_ERROR, check_against_dequantized, check_weights, config, in_transformers, logits
from packed_models import by_hand, each_random, save_random

AWQ = ["--format", "awq"]
SYMMETRIC = ["--scheme", "symmetric"]
# Options, group, symmetric
SCHEMES = {
    "group 32": (["--group-size", 32], 32, False),
    "group 64": (["--group-size", 64], 64, False),
    "group 128": ([], 128, False),
    "group 32, symmetric": (["--group-size", 32, *SYMMETRIC], 32, True),
    "group 128, symmetric": (SYMMETRIC, 128, True),
}
schemes = pytest.mark.parametrize("options, group, symmetric", SCHEMES.values(), ids=SCHEMES.keys())
DOWN = r"layers\.1\.mlp\.down_proj"
DOWN_PROJ = "model.layers.1.mlp.down_proj"
PARTS = {"qweight": torch.int32, "qzeros": torch.int32, "scales": torch.float16}


def modules(stored) -> list[str]:
    return sorted(name.removesuffix(".qweight") for name in stored if name.endswith(".qweight"))


def parts(stored, module):
    return {part: stored[f"{module}.{part}"].numpy() for part in PARTS}


@schemes
def test_bytes_are_rounding_to_nearest_and_decode_to_what_dequantize_says(options, group, symmetric, tmp_path):
    quantize(TINY_LLAMA, tmp_path / "q", *AWQ, "--bits", 4, *options, "--observer", "minmax")
    original, stored = tensors(TINY_LLAMA), tensors(tmp_path / "q")
    restored = tensors(dequantize(tmp_path / "q", tmp_path / "d", "--dtype", "f32"))
    assert restored.keys() == original.keys()
    assert len(modules(stored)) == 21
    for module in modules(stored):
        weight = original[f"{module}.weight"]
        outputs, inputs = weight.shape
        assert {part: stored[f"{module}.{part}"].dtype for part in PARTS} == PARTS
        assert stored[f"{module}.qweight"].shape == (inputs, outputs // 8)
        assert stored[f"{module}.qzeros"].shape == (inputs // group, outputs // 8)
        assert stored[f"{module}.scales"].shape == (inputs // group, outputs)
        found = layouts.from_awq(parts(stored, module))
        for a, b in zip(found, layouts.rounded_to_nearest(weight.float().numpy(), 4, group, symmetric)):
            assert (a == b).all(), module
        assert torch.equal(restored[f"{module}.weight"], torch.from_numpy(layouts.values(*found))), module
    kept = {name for name in stored if name.rsplit(".", 1)[1] not in PARTS}
    assert kept == {name for name in original if name.removesuffix(".weight") not in modules(stored)}
    assert all(torch.equal(stored[name], original[name]) for name in kept)


@schemes
def test_transformers_computes_the_dequantized_models_logits(options, group, symmetric, tmp_path):
    quantize(TINY_LLAMA, tmp_path / "q", *AWQ, "--bits", 4, *options)
    dense = dequantize(tmp_path / "q", tmp_path / "d", "--dtype", "f32")
    loaded, expected = in_transformers(tmp_path / "q"), in_transformers(dense)
    assert len(check_weights(loaded, dense)) == 21
    assert relative_error(logits(loaded), logits(expected)) < F16_ERROR
    assert bits_per_byte(expected) < bits_per_byte(in_transformers(TINY_LLAMA)) + 0.05


@schemes
def test_the_config_is_what_loaders_look_for(options, group, symmetric, tmp_path):
    quantize(TINY_LLAMA, tmp_path / "q", *AWQ, "--bits", 4, *options)
    written = config(tmp_path / "q")
    expected = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    assert expected.items() <= written.items()
    assert isinstance(written["zero_point"], bool)
    assert "lm_head" in written["modules_to_not_convert"]


def test_awq_is_asymmetric_unless_told(tmp_path):
    quantize(TINY_LLAMA, tmp_path / "a", *AWQ, "--bits", 4)
    quantize(TINY_LLAMA, tmp_path / "b", *AWQ, "--bits", 4, "--scheme", "asymmetric")
    quantize(TINY_LLAMA, tmp_path / "s", *AWQ, "--bits", 4, *SYMMETRIC)
    a, b, s = (tensors(tmp_path / name) for name in "abs")
    assert all(torch.equal(a[name], b[name]) for name in b)
    for module in modules(s):
        assert (layouts.from_awq(parts(s, module))[1] == 8).all()


@each_random
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_biases_and_tied_weights(name, scheme, tmp_path):
    model = save_random(name, tmp_path / "model")
    quantize(model, tmp_path / "q", *AWQ, "--bits", 4, "--group-size", 32, "--scheme", scheme)
    check_against_dequantized(tmp_path / "q", tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_f16_and_f32_models(dtype, tmp_path):
    model = save_random("qwen2, biases", tmp_path / "model", dtype)
    quantize(model, tmp_path / "q", *AWQ, "--bits", 4, "--group-size", 32)
    check_against_dequantized(tmp_path / "q", tmp_path)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_searched_scales(scheme, tmp_path):
    report = quantize(TINY_LLAMA, tmp_path / "q", *AWQ, "--bits", 4, "--observer", "mse", "--scheme", scheme)
    plain = quantize(TINY_LLAMA, tmp_path / "p", *AWQ, "--bits", 4, "--observer", "minmax", "--scheme", scheme)
    better = [a["sqnr_db"] > b["sqnr_db"] for a, b in zip(report["tensors"], plain["tensors"]) if "scheme" in a]
    assert len(better) == 21 and all(better)
    dense = dequantize(tmp_path / "q", tmp_path / "d", "--dtype", "f32")
    loaded = in_transformers(tmp_path / "q")
    assert len(check_weights(loaded, dense)) == 21
    assert relative_error(logits(loaded), logits(in_transformers(dense))) < F16_ERROR


def test_a_kept_module_stays_dense(tmp_path):
    quantize(TINY_LLAMA, tmp_path / "q", *AWQ, "--bits", 4, "--exclude", DOWN)
    dense = dequantize(tmp_path / "q", tmp_path / "d", "--dtype", "f32")
    loaded = in_transformers(tmp_path / "q")
    names = check_weights(loaded, dense)
    assert len(names) == 20 and DOWN_PROJ not in names
    assert relative_error(logits(loaded), logits(in_transformers(dense))) < F16_ERROR


def test_compare_reads_it(tmp_path):
    report = quantize(TINY_LLAMA, tmp_path / "q", *AWQ, "--bits", 4)
    compared = compare(TINY_LLAMA, tmp_path / "q")
    assert compared["only"] == [[], []] and compared["unlike"] == []
    reported = {entry["name"]: entry["sqnr_db"] for entry in report["tensors"] if "scheme" in entry}
    lossy = {d["name"]: pytest.approx(d["sqnr_db"], abs=0.01) for d in compared["differences"] if d["sqnr_db"] != 999}
    assert len(lossy) == 21 and lossy == reported


@pytest.mark.parametrize("group, symmetric", [(32, False), (128, False), (128, True)])
def test_what_layouts_packs_by_hand_loads_and_dequantizes(group, symmetric, tmp_path):
    """The tests' own decoder and packer are right, and monoquant reads directories that it did not write."""
    packed, dense = by_hand(tmp_path, "awq", 4, group, symmetric, version="gemm", modules_to_not_convert=["lm_head"])
    loaded = in_transformers(packed)
    assert relative_error(logits(loaded), logits(in_transformers(dense))) < F16_ERROR
    assert len(check_weights(loaded, dense)) == 21
    restored = tensors(dequantize(packed, tmp_path / "restored", "--dtype", "f32"))
    expected = tensors(dense)
    assert restored.keys() == expected.keys()
    assert all(torch.equal(restored[name], expected[name]) for name in expected)
