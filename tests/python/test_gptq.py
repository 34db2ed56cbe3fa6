"""GPTQ directories: the bytes as an independent decoder reads them, and the logits that gptqmodel computes.

`layouts` has the decoder and the rounding to nearest, in numpy. gptqmodel's own decoding of each weight equals what
`monoquant dequantize` gives, rounded to f16, bit for bit; so no nibble is out of place.
"""

import json

import layouts
import pytest
import torch
from helpers import TINY_LLAMA, bits_per_byte, compare, dequantize, quantize, relative_error, tensors
from loaders import (
    F16_ERROR,
    check_against_dequantized,
    check_weights,
    config,
    in_gptqmodel,
    in_transformers,
    logits,
    quantized_modules,
)
from packed_models import by_hand, each_random, save_random

GPTQ = ["--format", "gptq"]
# Options, bits, group
SCHEMES = {
    "4 bit, group 32": (["--bits", 4, "--group-size", 32], 4, 32),
    "4 bit, group 64": (["--bits", 4, "--group-size", 64], 4, 64),
    "4 bit, group 128": (["--bits", 4], 4, 128),
    "4 bit, channel": (["--bits", 4, "--strategy", "channel"], 4, -1),
    "8 bit, group 32": (["--bits", 8, "--group-size", 32], 8, 32),
    "8 bit, group 128": (["--bits", 8, "--group-size", 128], 8, 128),
    "8 bit, channel": (["--bits", 8, "--strategy", "channel"], 8, -1),
}
schemes = pytest.mark.parametrize("options, bits, group", SCHEMES.values(), ids=SCHEMES.keys())
DOWN = r"layers\.1\.mlp\.down_proj"
DOWN_PROJ = "model.layers.1.mlp.down_proj"
LOSS = {4: 0.05, 8: 0.01}  # bits per byte, as in test_transformers
PARTS = {
    "qweight": torch.int32,
    "qzeros": torch.int32,
    "scales": torch.float16,
    "g_idx": torch.int32,
}


def modules(stored) -> list[str]:
    return sorted(name.removesuffix(".qweight") for name in stored if name.endswith(".qweight"))


def parts(stored, module):
    return {part: stored[f"{module}.{part}"].numpy() for part in PARTS}


@schemes
def test_bytes_are_rounding_to_nearest_and_decode_to_what_dequantize_says(options, bits, group, tmp_path):
    quantize(TINY_LLAMA, tmp_path / "q", *GPTQ, *options, "--observer", "minmax")
    original, stored = tensors(TINY_LLAMA), tensors(tmp_path / "q")
    restored = tensors(dequantize(tmp_path / "q", tmp_path / "d", "--dtype", "f32"))
    assert restored.keys() == original.keys()
    assert len(modules(stored)) == 21
    for module in modules(stored):
        weight = original[f"{module}.weight"]
        outputs, inputs = weight.shape
        groups = 1 if group == -1 else inputs // group
        assert {part: stored[f"{module}.{part}"].dtype for part in PARTS} == PARTS
        assert stored[f"{module}.qweight"].shape == (inputs * bits // 32, outputs)
        assert stored[f"{module}.qzeros"].shape == (groups, outputs * bits // 32)
        assert stored[f"{module}.scales"].shape == (groups, outputs)
        found = layouts.from_gptq(parts(stored, module), bits)
        expected = layouts.rounded_to_nearest(weight.float().numpy(), bits, group, symmetric=True)
        for a, b in zip(found, expected):
            assert (a == b).all(), module
        assert torch.equal(restored[f"{module}.weight"], torch.from_numpy(layouts.values(*found))), module
    kept = {name for name in stored if name.rsplit(".", 1)[1] not in PARTS}
    assert kept == {name for name in original if name.removesuffix(".weight") not in modules(stored)}
    assert all(torch.equal(stored[name], original[name]) for name in kept)


@schemes
def test_transformers_computes_the_dequantized_models_logits(options, bits, group, tmp_path):
    quantize(TINY_LLAMA, tmp_path / "q", *GPTQ, *options)
    dense = dequantize(tmp_path / "q", tmp_path / "d", "--dtype", "f32")
    loaded, expected = in_transformers(tmp_path / "q"), in_transformers(dense)
    assert len(check_weights(loaded, dense)) == 21
    assert relative_error(logits(loaded), logits(expected)) < F16_ERROR
    assert bits_per_byte(expected) < bits_per_byte(in_transformers(TINY_LLAMA)) + LOSS[bits]


@schemes
def test_the_config_is_what_loaders_look_for(options, bits, group, tmp_path):
    quantize(TINY_LLAMA, tmp_path / "q", *GPTQ, *options)
    written = config(tmp_path / "q")
    expected = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": True}
    expected |= {"lm_head": False, "checkpoint_format": "gptq"}
    assert expected.items() <= written.items()
    mirrored = json.loads((tmp_path / "q" / "quantize_config.json").read_text())
    assert {"bits": bits, "group_size": group, "desc_act": False, "sym": True}.items() <= mirrored.items()


@each_random
@pytest.mark.parametrize("bits", [4, 8])
def test_biases_and_tied_weights(name, bits, tmp_path):
    model = save_random(name, tmp_path / "model")
    quantize(model, tmp_path / "q", *GPTQ, "--bits", bits, "--group-size", 32)
    check_against_dequantized(tmp_path / "q", tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_f16_and_f32_models(dtype, tmp_path):
    model = save_random("qwen2, biases", tmp_path / "model", dtype)
    quantize(model, tmp_path / "q", *GPTQ, "--bits", 4, "--group-size", 32)
    check_against_dequantized(tmp_path / "q", tmp_path)


def test_searched_scales_of_both_signs(tmp_path):
    quantize(TINY_LLAMA, tmp_path / "q", *GPTQ, "--bits", 4, "--observer", "mse")
    stored = tensors(tmp_path / "q")
    assert all((stored[f"{module}.scales"] < 0).any() for module in modules(stored))
    dense = dequantize(tmp_path / "q", tmp_path / "d", "--dtype", "f32")
    loaded = in_transformers(tmp_path / "q")
    assert len(check_weights(loaded, dense)) == 21
    assert relative_error(logits(loaded), logits(in_transformers(dense))) < F16_ERROR


def test_a_kept_module_stays_dense_in_both_loaders(tmp_path):
    """transformers (optimum) reads `modules_in_block_to_quantize`, gptqmodel and vLLM `dynamic`."""
    quantize(TINY_LLAMA, tmp_path / "q", *GPTQ, "--bits", 4, "--exclude", DOWN)
    dense = dequantize(tmp_path / "q", tmp_path / "d", "--dtype", "f32")
    expected = logits(in_transformers(dense))
    for loaded in (in_transformers(tmp_path / "q"), in_gptqmodel(tmp_path / "q")):
        names = check_weights(loaded, dense)
        assert len(names) == 20 and DOWN_PROJ not in names
        assert relative_error(logits(loaded), expected) < F16_ERROR


@pytest.mark.parametrize(
    "override, bits, group", [("bits=8", 8, 384), ("group-size=32", 4, 32), ("bits=8,group-size=64", 8, 64)]
)
def test_overrides_reach_the_module_they_were_meant_for(override, bits, group, tmp_path):
    """By `dynamic`, which gptqmodel and vLLM read; transformers does not, and the plan says so."""
    report = quantize(TINY_LLAMA, tmp_path / "q", *GPTQ, "--bits", 4, "--override", f"{DOWN}={override}")
    assert any("transformers" in note for note in report["notes"])
    assert len(config(tmp_path / "q")["dynamic"]) == 1
    dense = dequantize(tmp_path / "q", tmp_path / "d", "--dtype", "f32")
    loaded = in_gptqmodel(tmp_path / "q")
    assert len(check_weights(loaded, dense)) == 21
    schemes = {name: (module.bits, module.group_size) for name, module in quantized_modules(loaded).items()}
    assert schemes.pop(DOWN_PROJ) == (bits, group)
    assert set(schemes.values()) == {(4, 128)}
    assert relative_error(logits(loaded), logits(in_transformers(dense))) < F16_ERROR


def test_shards_load_like_one_file(tmp_path):
    for name, options in {"one": [], "many": ["--max-shard-size", "200kB"]}.items():
        quantize(TINY_LLAMA, tmp_path / name, *GPTQ, "--bits", 4, *options)
    assert len(sorted(tmp_path.glob("many/*.safetensors"))) > 2
    one, many = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert one.keys() == many.keys() and all(torch.equal(one[name], many[name]) for name in one)
    assert torch.equal(logits(in_transformers(tmp_path / "one")), logits(in_transformers(tmp_path / "many")))


def test_compare_reads_it(tmp_path):
    report = quantize(TINY_LLAMA, tmp_path / "q", *GPTQ, "--bits", 4)
    compared = compare(TINY_LLAMA, tmp_path / "q")
    assert compared["only"] == [[], []] and compared["unlike"] == []
    reported = {entry["name"]: entry["sqnr_db"] for entry in report["tensors"] if "scheme" in entry}
    lossy = {d["name"]: pytest.approx(d["sqnr_db"], abs=0.01) for d in compared["differences"] if d["sqnr_db"] != 999}
    assert len(lossy) == 21 and lossy == reported


@pytest.mark.parametrize("bits, group", [(4, 32), (4, 128), (8, -1)])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_what_layouts_packs_by_hand_loads_and_dequantizes(bits, group, version, tmp_path):
    """The tests' own decoder and packer are right, and monoquant reads directories that it did not write."""
    packed, dense = by_hand(tmp_path, "gptq", bits, group, True, checkpoint_format=version)
    loaded = in_transformers(packed)
    assert relative_error(logits(loaded), logits(in_transformers(dense))) < F16_ERROR
    assert len(check_weights(loaded, dense)) == 21
    restored = tensors(dequantize(packed, tmp_path / "restored", "--dtype", "f32"))
    expected = tensors(dense)
    assert restored.keys() == expected.keys()
    assert all(torch.equal(restored[name], expected[name]) for name in expected)
