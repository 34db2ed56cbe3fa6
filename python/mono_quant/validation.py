"""Checks of a quantized model against its original."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import warnings as python_warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import _native, _tensors, models
from .exceptions import ConfigurationError, InputError, MonoQuantError, QuantizationError, ValidationError
from .options import one_of
from .results import MEGABYTE, QuantizationResult
from .run import ON_FAILURE, existing

@dataclass
class ValidationResult:
    """What a comparison found. Ratios in dB are 10·log10(Σx² / Σ(x−x̂)²); 999 where nothing was lost."""

    sqnr_db: float | None = None
    """Over all quantized weights."""
    layer_sqnr_db: dict[str, float] = field(default_factory=dict)
    max_error: float | None = None
    """max |x−x̂| over all quantized weights."""
    output_error: float | None = None
    """‖y−ŷ‖ / ‖y‖ on the sample input."""
    output_sqnr_db: float | None = None
    original_size_mb: float = 0.0
    quantized_size_mb: float = 0.0
    compression_ratio: float = 1.0
    ran: bool = False
    """Whether the quantized model was run."""
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.errors

    def __bool__(self) -> bool:
        return self.passed


def validate_quantization(
    original: Any, quantized: Any, sample_input: Any = None, on_failure: str = "error"
) -> ValidationResult:
    """Compares weights, sizes, and outputs on a sample input; loads and runs the quantized model.

    original, quantized: modules, state dicts, results or paths.
    sample_input: a tensor, a tuple of positional or a dict of keyword inputs; only with modules.
    on_failure: "error" raises ValidationError, "warn" warns, "ignore" only notes errors in the result.
    """
    one_of("on_failure", on_failure, ON_FAILURE)
    metadata = quantized.metadata if isinstance(quantized, QuantizationResult) else None
    if isinstance(quantized, QuantizationResult):
        quantized = quantized.model if quantized.model is not None else quantized.path
    modules = isinstance(original, nn.Module) and isinstance(quantized, nn.Module)
    if sample_input is not None and not modules:
        raise ConfigurationError("sample_input= is for two modules: files and state dicts cannot run", "leave it out")
    result = ValidationResult()
    try:
        _weights(original, quantized, metadata, result)
    except QuantizationError as e:  # codes that cannot be decoded, or nothing in common
        result.errors.append(str(e))
    if isinstance(quantized, nn.Module):
        result.errors += _loading(original, quantized)
        if sample_input is not None:
            _runs(original, quantized, sample_input, result)
    _report(result.errors, on_failure)
    return result


def check_loading(original: Any, quantized: Any, on_failure: str) -> None:
    """Whether a quantized module's state dict loads and is finite; the part of validation that costs nothing."""
    if isinstance(quantized, nn.Module):
        _report(_loading(original, quantized), on_failure)


def _report(errors: list[str], on_failure: str) -> None:
    if errors and on_failure == "error":
        raise ValidationError("; ".join(errors), "on_failure='warn' returns the model all the same")
    if errors and on_failure == "warn":
        python_warnings.warn("; ".join(errors), stacklevel=3)


def _given(model: Any, metadata: Mapping[str, str] | None = None) -> Any:
    if isinstance(model, nn.Module):
        kept = metadata or model.__dict__.get("_mono_quant")
        return _tensors.source(type(model).__name__, models.state_of(model), models.config_of(model), kept)
    if isinstance(model, Mapping):
        return _tensors.source("state dict", model, metadata=metadata)
    if isinstance(model, (str, os.PathLike)):
        return existing(model)
    raise InputError(f"{type(model).__name__} is no model", "a module, a state dict, a result or a path")


def _weights(original: Any, quantized: Any, metadata: Mapping[str, str] | None, result: ValidationResult) -> None:
    found = json.loads(_native.compare_models(_given(original), _given(quantized, metadata)))
    coded = [d for d in found["differences"] if d["kinds"][1].startswith("int")]
    result.layer_sqnr_db = {d["name"]: d["sqnr_db"] for d in coded}
    counted = coded or found["differences"]
    result.max_error = max((d["max_error"] for d in counted), default=None)
    noise = sum(d["signal"] / 10 ** (d["sqnr_db"] / 10) for d in counted)
    signal = sum(d["signal"] for d in counted)
    if counted:
        exact = all(d["sqnr_db"] >= 999 for d in counted)
        result.sqnr_db = 999.0 if exact or not noise else round(10 * _log10(signal / noise), 3)
    before, after = found["bytes"]
    result.original_size_mb, result.quantized_size_mb = before / MEGABYTE, after / MEGABYTE
    result.compression_ratio = before / after if after else 1.0
    if found["only"][0]:
        result.errors.append(f"weights are missing: {', '.join(found['only'][0][:8])}")
    result.errors += [f"weights differ in kind: {text}" for text in found["unlike"]]


def _log10(x: float) -> float:
    return math.log10(x) if x > 0 else -99.9


def _loading(original: Any, quantized: nn.Module) -> list[str]:
    """What speaks against the state dict: that it does not load, or has values that are not finite and were before."""
    state = quantized.state_dict()
    before = original.state_dict() if isinstance(original, nn.Module) else {}
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    bad = [n for n, t in tensors.items() if not _tensors.finite(t) and (n not in before or _tensors.finite(before[n]))]
    errors = [f"values that are not finite in {', '.join(bad[:8])}"] if bad else []
    try:
        quantized.load_state_dict(state, strict=True)
    except RuntimeError as e:
        errors.append(f"the state dict does not load: {e}")
    return errors


def first_inputs(data: Any) -> Any:
    """The first batch of calibration data, without using up an iterator."""
    if isinstance(data, (Tensor, Mapping)) or not isinstance(data, Iterable):
        return data
    if isinstance(data, Iterator):
        return None
    with torch.random.fork_rng():  # a shuffling DataLoader draws numbers
        return next(iter(data), None)


def _call(model: nn.Module, inputs: Any) -> Any:
    from .calibration import run_on

    training = {module: module.training for module in model.modules()}
    try:
        for module in training:
            module.training = False  # not eval(), which some models override to do more
        with torch.no_grad():
            return run_on(model, inputs)
    finally:
        for module, mode in training.items():
            module.training = mode


def _floats(output: Any) -> Iterator[Tensor]:
    """The float tensors of a model's output, whatever its form."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output.detach().double().cpu()
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _floats(value)
    elif dataclasses.is_dataclass(output):
        for item in dataclasses.fields(output):
            yield from _floats(getattr(output, item.name))


def _runs(original: nn.Module, quantized: nn.Module, inputs: Any, result: ValidationResult) -> None:
    try:
        expected = list(_floats(_call(original, inputs)))
    except MonoQuantError:
        raise
    except Exception as e:
        what = f"the model does not run on the sample input: {type(e).__name__}: {e}"
        raise InputError(what, "a tensor, a tuple of positional, or a dict of keyword inputs") from e
    try:
        found = list(_floats(_call(quantized, inputs)))
    except Exception as e:
        result.errors.append(f"the quantized model does not run: {type(e).__name__}: {e}")
        return
    result.ran = True
    if not expected:
        result.warnings.append("outputs were not compared: the model returned no float tensors")
        return
    if [t.shape for t in found] != [t.shape for t in expected]:
        result.errors.append("the quantized model's outputs have other shapes")
        return
    if any(e.isfinite().all() and not f.isfinite().all() for e, f in zip(expected, found)):
        result.errors.append("the quantized model's outputs are not finite")
        return
    signal = sum(float(e.square().sum()) for e in expected)
    noise = sum(float((e - f).square().sum()) for e, f in zip(expected, found))
    if signal > 0:
        result.output_error = (noise / signal) ** 0.5
        result.output_sqnr_db = 999.0 if noise == 0 else 10 * _log10(signal / noise)
        if result.output_error > 0.5:
            result.warnings.append(f"outputs differ by {result.output_error:.0%} of their size on the sample input")
