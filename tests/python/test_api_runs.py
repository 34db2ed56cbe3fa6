"""Runs from file to file through Python: gone on with, verified, reported; the command line's own guarantees."""

import json

import pytest
import torch
from helpers import monoquant
from mono_quant import ConfigurationError, MonoQuantError, QuantizationError, calibrate, convert_model, quantize
from safetensors.torch import save_file
from torch import nn


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint of eight files."""
    folder = tmp_path / "model"
    folder.mkdir()
    torch.manual_seed(0)
    index = {}
    for shard in range(8):
        name = f"model-{shard + 1:05}-of-00008.safetensors"
        key = f"model.layers.{shard}.self_attn.q_proj.weight"
        save_file({key: torch.randn(64, 256).bfloat16()}, folder / name)
        index[key] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupted(sharded, output, monkeypatch, **options):
    """A run that Ctrl-C stops once half of it is read."""
    from mono_quant import progress

    def stop(self, more):
        self.done += more
        if self.done * 2 > self.total:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(progress.Progress, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize(sharded, output=output, **options)


def test_an_interrupted_run_is_gone_on_with(sharded, tmp_path, monkeypatch):
    options = {"bits": 4, "max_shard_size": 10_000}
    whole, out, report = tmp_path / "whole", tmp_path / "out", tmp_path / "out.json"
    quantize(sharded, output=whole, **options)
    interrupted(sharded, out, monkeypatch, **options)
    assert not out.exists() and (tmp_path / ".out.monoquant-partial").exists()
    with pytest.raises(MonoQuantError, match=r"finished files .*; resume=True goes on with them, force=True "):
        quantize(sharded, output=out, **options)
    result = quantize(sharded, output=out, resume=True, verify=True, report=report, **options)
    assert any("finished are as they were, and stay" in note for note in result.info.notes), result.info.notes
    assert content(out) == content(whole)
    told = json.loads(report.read_text())
    assert told["verified"] and told["command"][0] == "quantize" and "--bits=4" in told["command"]
    assert "same bytes" in monoquant("reproduce", report)
    with pytest.raises(ConfigurationError, match="report=.*exists already"):
        quantize(sharded, output=tmp_path / "other", report=report, **options)
    with pytest.raises(QuantizationError, match="exists already"):
        quantize(sharded, output=whole, resume=True, **options)


def test_conversions_have_the_same(sharded, tmp_path):
    quantize(sharded, output=tmp_path / "a", bits=4)
    convert_model(tmp_path / "a", tmp_path / "b", "gptq", verify=True, report=tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text())["command"] == ["convert", "--format=gptq"]
    assert "same bytes" in monoquant("reproduce", tmp_path / "b.json")


@pytest.mark.parametrize("given", [{"resume": True}, {"verify": True}, {"report": "r.json"}, {"max_memory": 1}], ids=str)
def test_what_only_files_can_have_is_refused_elsewhere(given, sharded):
    with pytest.raises(ConfigurationError, match="from file to file"):
        quantize(nn.Linear(8, 8), dynamic=True, **given)
    with pytest.raises(ConfigurationError, match="from file to file"):
        quantize(sharded, dynamic=True, **given)


def test_a_report_names_files_that_somebody_else_can_read(sharded, tmp_path):
    statistics = calibrate(nn.Sequential(nn.Linear(8, 8)), [torch.randn(2, 8)])
    with pytest.raises(ConfigurationError, match="in no file"):
        quantize(sharded, output=tmp_path / "x", calibration=statistics, report=tmp_path / "r.json")
    for wrong in ({"report": 7}, {"max_memory": 1.5}, {"max_memory": "much"}, {"max_shard_size": "5 apples"}):
        with pytest.raises(ConfigurationError, match="report=|max_memory=|is not accepted: "):
            quantize(sharded, dynamic=True, output=tmp_path / "x", **wrong)
    with pytest.raises(ConfigurationError, match="no directory"):
        quantize(sharded, dynamic=True, output=tmp_path / "x", report=tmp_path / "none" / "r.json")
    assert not (tmp_path / "x").exists()
