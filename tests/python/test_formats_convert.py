"""`monoquant convert` changes where codes, zero points and scales lie, nothing else; what it cannot keep, it refuses."""

import json

import pytest
import torch
from helpers import TINY_LLAMA, convert, dequantize, quantize, refused, relative_error, tensors
from loaders import F16_ERROR, check_weights, config, in_transformers, logits
from packed_models import by_hand
from safetensors import safe_open
from transformers import AutoModelForCausalLM

GROUP_32 = ["--bits", 4, "--group-size", 32]
ASYMMETRIC = ["--scheme", "asymmetric"]
SYMMETRIC = ["--scheme", "symmetric"]
CT = "compressed-tensors"


@pytest.fixture(scope="module")
def f16_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "f16"
    AutoModelForCausalLM.from_pretrained(TINY_LLAMA, dtype=torch.float16).save_pretrained(path)
    return path


def same(a, b) -> bool:
    """The same tensors, by safetensors' own reader, and the same config."""
    a_tensors, b_tensors = tensors(a), tensors(b)
    assert a_tensors.keys() == b_tensors.keys()
    for name, tensor in a_tensors.items():
        assert tensor.dtype == b_tensors[name].dtype and torch.equal(tensor, b_tensors[name]), name
    assert config(a) == config(b)
    return True


ROUND_TRIPS = {
    "4 bit, group 32": (GROUP_32, ["gptq", CT]),
    "4 bit, group 128": (["--bits", 4], ["gptq", CT]),
    "4 bit, channel": (["--bits", 4, "--strategy", "channel"], ["gptq", CT]),
    "4 bit, mse": (["--bits", 4, "--observer", "mse"], ["gptq", CT]),
    "4 bit, a kept module": (["--bits", 4, "--exclude", "layers.1.mlp"], ["gptq", CT]),
    "8 bit, channel": (["--preset", "w8a16"], ["gptq", CT]),
    "8 bit, group 64": (["--preset", "w8a16", "--group-size", 64], ["gptq", CT]),
    "mixed": (["--bits", 4, "--override", "down_proj=bits=8"], ["gptq", CT]),
    "4 bit through AWQ": (GROUP_32, ["awq", CT]),
    "4 bit through GPTQ and AWQ": (GROUP_32, ["gptq", "awq", CT]),
    "4 bit through AWQ and GPTQ": (GROUP_32, ["awq", "gptq", CT]),
    "asymmetric through AWQ": ([*GROUP_32, *ASYMMETRIC], ["awq", CT]),
    "from GPTQ": ([*GROUP_32, "--format", "gptq"], [CT, "gptq"]),
    "from GPTQ through AWQ": ([*GROUP_32, "--format", "gptq"], ["awq", "gptq"]),
    "from GPTQ, 8 bit": (["--bits", 8, "--format", "gptq"], [CT, "gptq"]),
    "from AWQ": ([*GROUP_32, "--format", "awq"], [CT, "awq"]),
    "from AWQ, symmetric": ([*GROUP_32, "--format", "awq", *SYMMETRIC], ["gptq", "awq"]),
}


@pytest.mark.parametrize("options, way", ROUND_TRIPS.values(), ids=ROUND_TRIPS.keys())
def test_there_and_back_is_the_same_file(options, way, f16_model, tmp_path):
    quantize(f16_model, tmp_path / "start", *options)
    at = tmp_path / "start"
    expected = tensors(dequantize(at, tmp_path / "dense", "--dtype", "f32"))
    for step, layout in enumerate(way):
        at = convert(at, tmp_path / f"step{step}", layout)
        assert config(at)["quant_method"] == layout
        dense = tensors(dequantize(at, tmp_path / f"dense{step}", "--dtype", "f32"))
        assert dense.keys() == expected.keys()
        assert all(torch.equal(dense[name], expected[name]) for name in expected)
    assert same(tmp_path / "start", at)


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_converted_is_what_quantize_writes_at_once(layout, f16_model, tmp_path):
    scheme = SYMMETRIC if layout == "gptq" else ASYMMETRIC
    quantize(f16_model, tmp_path / "ct", *GROUP_32, *scheme)
    quantize(f16_model, tmp_path / "direct", *GROUP_32, *scheme, "--format", layout)
    assert same(tmp_path / "direct", convert(tmp_path / "ct", tmp_path / "converted", layout))


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_bf16_scales_that_f16_holds_convert_and_load(layout, tmp_path):
    quantize(TINY_LLAMA, tmp_path / "ct", *GROUP_32)
    dense = dequantize(tmp_path / "ct", tmp_path / "dense", "--dtype", "f32")
    loaded = in_transformers(convert(tmp_path / "ct", tmp_path / "q", layout))
    assert len(check_weights(loaded, dense)) == 21
    assert relative_error(logits(loaded), logits(in_transformers(dense))) < F16_ERROR
    again = tensors(dequantize(tmp_path / "q", tmp_path / "again", "--dtype", "f32"))
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors(dense).items())


@pytest.mark.parametrize("source", ["gptq", "awq"])
def test_files_of_others_convert(source, tmp_path):
    packed, dense = by_hand(tmp_path, source, 4, 32, True)
    loaded = AutoModelForCausalLM.from_pretrained(convert(packed, tmp_path / "ct", CT), dtype=torch.float32).eval()
    # compressed-tensors multiplies in f16 or f32, by its version
    assert relative_error(logits(loaded), logits(in_transformers(dense))) < F16_ERROR
    other = {"gptq": "awq", "awq": "gptq"}[source]
    assert len(check_weights(in_transformers(convert(packed, tmp_path / "other", other)), dense)) == 21


def test_version_2_of_gptq_becomes_version_1(tmp_path):
    packed, dense = by_hand(tmp_path, "gptq", 4, 32, True, checkpoint_format="gptq_v2")
    at = convert(packed, tmp_path / "v1", "gptq")
    assert config(at)["checkpoint_format"] == "gptq"
    assert len(check_weights(in_transformers(at), dense)) == 21


REFUSALS = {
    "asymmetric → gptq": ([*GROUP_32, *ASYMMETRIC], "gptq", "symmetric"),
    "AWQ's zero points → gptq": ([*GROUP_32, "--format", "awq"], "gptq", "symmetric"),
    "8 bit → awq": (["--preset", "w8a16", "--group-size", 32], "awq", "4 bits"),
    "channels → awq": (["--bits", 4, "--strategy", "channel"], "awq", "group"),
    "mixed bits → awq": ([*GROUP_32, "--override", "down_proj=bits=8"], "awq", "4 bits"),
    "mixed groups → awq": ([*GROUP_32, "--override", "down_proj=group-size=64"], "awq", "group"),
    "what is there already": (GROUP_32, CT, "already"),
}


@pytest.mark.parametrize("options, layout, reason", REFUSALS.values(), ids=REFUSALS.keys())
def test_what_a_layout_cannot_hold_is_refused_with_the_reason(options, layout, reason, f16_model, tmp_path):
    quantize(f16_model, tmp_path / "q", *options)
    said = refused("convert", "-m", tmp_path / "q", "--format", layout, "-o", tmp_path / "out")
    assert layout in said and reason in said
    assert not (tmp_path / "out").exists()


def test_scales_that_f16_cannot_hold_are_refused(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(TINY_LLAMA)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1e-6)
    model.save_pretrained(tmp_path / "model")
    quantize(tmp_path / "model", tmp_path / "q", *GROUP_32)
    for layout in ("gptq", "awq"):
        said = refused("convert", "-m", tmp_path / "q", "--format", layout, "-o", tmp_path / "out")
        assert "layers.1.mlp.up_proj" in said and "f16" in said.lower()
        assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_quantized_is_refused(tmp_path):
    assert "quantize" in refused("convert", "-m", TINY_LLAMA, "--format", "gptq", "-o", tmp_path / "out")


def test_several_layouts_from_one_reading(f16_model, tmp_path):
    quantize(f16_model, tmp_path / "ct", *GROUP_32)
    convert(tmp_path / "ct", tmp_path / "both", "gptq,awq")
    for layout in ("gptq", "awq"):
        assert same(tmp_path / "both" / layout, convert(tmp_path / "ct", tmp_path / layout, layout))
        with safe_open(tmp_path / "both" / layout / "model.safetensors", "pt") as opened:
            assert json.loads(opened.metadata()["monoquant"])["format"] == layout
