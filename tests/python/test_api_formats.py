"""GPTQ and AWQ from Python: the files are the command line's, and modules take them."""

import filecmp
import json
import subprocess

import mono_quant
import pytest
import torch
from helpers import BINARY
from mono_quant import ConfigurationError, QuantizationError, convert_model, dequantize_model, load_model, quantize
from torch import nn


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()


@pytest.fixture
def saved(module, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(module.state_dict(), path)
    return path


def test_several_formats_are_the_command_lines(saved, tmp_path):
    result = quantize(saved, bits=4, group_size=32, format=["gptq", "awq"], scheme="symmetric",
                      layer_names=["0"], output=tmp_path / "python")
    assert result.path == tmp_path / "python"
    subprocess.run([BINARY, "quantize", "-m", saved, "-b", "4", "--group-size", "32", "--format", "gptq,awq", "-s",
                    "symmetric", "--include", r"^0\.weight$", "-o", tmp_path / "command", "-q"], check=True)
    for name in ("gptq", "awq"):
        python, command = (tmp_path / door / name / "model.safetensors" for door in ("python", "command"))
        states = [load_model(path) for path in (python, command)]
        assert states[0].keys() == states[1].keys() and "0.qweight" in states[0]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(("name", "bits", "scheme"), [("gptq", 4, "symmetric"), ("gptq", 8, "symmetric"),
                                                      ("awq", 4, "asymmetric"), ("awq", 4, "symmetric")])
def test_modules_take_them(module, saved, tmp_path, name, bits, scheme):
    quantize(saved, bits=bits, group_size=32, format=name, scheme=scheme, layer_names=["0", "2"],
             output=tmp_path / "coded")
    filled = load_model(tmp_path / "coded", module)
    inputs = torch.randn(5, 64)
    floats = dequantize_model(tmp_path / "coded")
    reference = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    reference.load_state_dict(floats)
    assert torch.allclose(filled(inputs), reference(inputs), atol=1e-5)
    error = (reference(inputs) - module(inputs)).norm() / module(inputs).norm()
    assert 0 < error < {4: 0.2, 8: 0.02}[bits]
    assert isinstance(filled[0], mono_quant.QuantizedLinear)


def test_convert_leads_back(saved, tmp_path):
    quantize(saved, bits=4, group_size=32, format="gptq", output=tmp_path / "a.safetensors")
    assert convert_model(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "awq") == tmp_path / "b.safetensors"
    seen = []
    convert_model(tmp_path / "b.safetensors", tmp_path / "c.safetensors", ["gptq"], show_progress=bool(seen))
    assert filecmp.cmp(tmp_path / "a.safetensors", tmp_path / "c.safetensors", shallow=False)
    with pytest.raises(QuantizationError, match="exists already"):
        convert_model(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "gptq")


def test_what_does_not_go_is_refused(module, saved, tmp_path):
    with pytest.raises(ConfigurationError, match="is a layout of files"):
        quantize(module, bits=4, format="gptq")
    with pytest.raises(ConfigurationError, match="is a layout of files"):
        quantize(saved, bits=4, format="gptq")
    with pytest.raises(ConfigurationError, match="format='ggml'"):
        quantize(saved, bits=4, format="ggml", output=tmp_path / "x")
    with pytest.raises(ConfigurationError, match=r"format=\['awq', 'awq'\]"):
        quantize(saved, bits=4, format=["awq", "awq"], output=tmp_path / "x")
    with pytest.raises(ConfigurationError, match="no meaning with bits=16"):
        quantize(saved, bits=16, format="awq", output=tmp_path / "x")
    with pytest.raises(QuantizationError, match="awq holds 4 bits"):
        quantize(saved, bits=8, format="awq", output=tmp_path / "x")
    with pytest.raises(QuantizationError, match="nothing to convert"):
        convert_model(saved, tmp_path / "x", "awq")
    assert not (tmp_path / "x").exists()
    assert json.loads(mono_quant._native.inspect_model(str(saved)))["items"]
