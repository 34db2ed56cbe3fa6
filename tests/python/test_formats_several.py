"""Several layouts from one reading are the layouts one by one; every command reads each of them."""

import filecmp
import json
import subprocess

import pytest
import torch
from helpers import BINARY, TINY_LLAMA, compare, dequantize, metadata, monoquant, quantize, refused, tensors
from safetensors.torch import save_file

LAYOUTS = ["compressed-tensors", "gptq", "awq"]
SCHEMES = {
    "4 bit, group 32": ["--bits", 4, "--group-size", 32, "--scheme", "symmetric"],
    "4 bit, group 128, mse": ["--bits", 4, "--observer", "mse", "--scheme", "symmetric"],
}


@pytest.mark.parametrize("options", SCHEMES.values(), ids=SCHEMES.keys())
def test_several_are_each_by_itself(options, tmp_path):
    quantize(TINY_LLAMA, tmp_path / "all", *options, "--format", ",".join(LAYOUTS))
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(LAYOUTS)
    for layout in LAYOUTS:
        quantize(TINY_LLAMA, tmp_path / layout, *options, "--format", layout)
        names = sorted(path.name for path in (tmp_path / layout).iterdir())
        assert sorted(path.name for path in (tmp_path / "all" / layout).iterdir()) == names
        _, different, missing = filecmp.cmpfiles(tmp_path / layout, tmp_path / "all" / layout, names, shallow=False)
        assert [name for name in different if name.endswith((".json", ".safetensors"))] == [] == missing


@pytest.mark.parametrize("options", SCHEMES.values(), ids=SCHEMES.keys())
def test_gptq_and_awq_hold_the_same_codes(options, tmp_path):
    quantize(TINY_LLAMA, tmp_path / "all", *options, "--format", "gptq,awq")
    dense = {layout: tensors(dequantize(tmp_path / "all" / layout, tmp_path / layout)) for layout in ("gptq", "awq")}
    assert all(torch.equal(dense["gptq"][name], dense["awq"][name]) for name in dense["awq"])
    compared = compare(tmp_path / "all" / "gptq", tmp_path / "all" / "awq")
    assert compared["only"] == [[], []] and all(d["sqnr_db"] == 999 for d in compared["differences"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inspect_and_validate_read_it(layout, tmp_path):
    quantize(TINY_LLAMA, tmp_path / "q", "--bits", 4, "--format", layout)
    assert "int4" in monoquant("inspect", tmp_path / "q")
    monoquant("validate", tmp_path / "q")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_validate_finds_a_missing_part(layout, tmp_path):
    quantize(TINY_LLAMA, tmp_path / "q", "--bits", 4, "--format", layout)
    stored = tensors(tmp_path / "q")
    part = next(name for name in stored if name.endswith("scale" if layout == "compressed-tensors" else "scales"))
    del stored[part]
    save_file(stored, tmp_path / "q" / "model.safetensors", {"format": "pt"})
    done = subprocess.run([BINARY, "validate", tmp_path / "q"], capture_output=True, text=True)
    assert done.returncode != 0
    assert part.rsplit(".", 1)[0] in done.stdout + done.stderr


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_the_recipe_is_in_the_file(layout, tmp_path):
    quantize(TINY_LLAMA, tmp_path / "q", "--bits", 4, "--format", layout)
    assert json.loads(metadata(tmp_path / "q" / "model.safetensors")["monoquant"])["format"] == layout


@pytest.mark.parametrize(
    "options",
    [
        ["--bits", 4, "--format", "gptq", "--scheme", "asymmetric"],
        ["--bits", 8, "--format", "awq"],
        ["--bits", 4, "--format", "awq", "--strategy", "channel"],
        ["--preset", "w8a8", "--format", "gptq"],
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_what_a_layout_cannot_hold_is_refused(options, tmp_path):
    said = refused("quantize", "-m", TINY_LLAMA, "-o", tmp_path / "out", *options)
    assert options[options.index("--format") + 1] in said
    assert not (tmp_path / "out").exists()
