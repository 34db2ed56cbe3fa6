"""Checks of a quantized model against its original."""

from __future__ import annotations

import json
import os
import warnings as python_warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import _native, _tensors, models
from .exceptions import ConfigurationError, InputError, ValidationError
from .modules import QuantizedModule
from .results import MEGABYTE, QuantizationResult

LOW_SQNR_DB = {8: (20.0, 10.0), 4: (12.0, 6.0), 16: (20.0, 10.0)}
"""By bits: under the first a warning, under the second an error. Gaussian weights reach 40 dB at 8 bits a channel and 19
at 4 bits in groups of 128."""


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
    if on_failure not in ("error", "warn", "ignore"):
        raise ConfigurationError(f"on_failure={on_failure!r}", "'error', 'warn' or 'ignore'")
    metadata = quantized.metadata if isinstance(quantized, QuantizationResult) else None
    if isinstance(quantized, QuantizationResult):
        quantized = quantized.model if quantized.model is not None else quantized.path
    result = ValidationResult()
    _weights(original, quantized, metadata, result)
    if isinstance(quantized, nn.Module):
        _loads(quantized, result)
        if sample_input is not None and isinstance(original, nn.Module):
            _runs(original, quantized, sample_input, result)
    if result.errors and on_failure == "error":
        raise ValidationError("; ".join(result.errors), "on_failure='warn' returns the model all the same")
    if result.errors and on_failure == "warn":
        python_warnings.warn("; ".join(result.errors), stacklevel=2)
    return result


def _given(model: Any, metadata: Mapping[str, str] | None = None) -> Any:
    if isinstance(model, nn.Module):
        kept = metadata or model.__dict__.get("_mono_quant")
        return _tensors.source(type(model).__name__, models.state_of(model), models.config_of(model), kept)
    if isinstance(model, Mapping):
        return _tensors.source("state dict", model, metadata=metadata)
    if isinstance(model, (str, os.PathLike)):
        return _tensors.of_path(model)
    raise InputError(f"a {type(model).__name__} is no model", "pass a module, a state dict, a result or a path")


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
    import math

    return math.log10(x) if x > 0 else -99.9


def _loads(quantized: nn.Module, result: ValidationResult) -> None:
    """Whether the state dict fits the module, and every float in it is finite."""
    state = quantized.state_dict()
    bad = [n for n, t in state.items() if isinstance(t, Tensor) and t.is_floating_point() and not t.isfinite().all()]
    if bad:
        result.errors.append(f"values that are not finite in {', '.join(bad[:8])}")
    try:
        quantized.load_state_dict(state, strict=True)
    except RuntimeError as e:
        result.errors.append(f"the state dict does not load: {e}")


def first_inputs(data: Any) -> Any:
    """The first batch of calibration data, without using up an iterator."""
    if isinstance(data, (Tensor, dict)):
        return data
    if isinstance(data, (list, tuple)) or hasattr(data, "dataset"):
        return next(iter(data), None)
    return None


def _call(model: nn.Module, inputs: Any) -> Any:
    from .calibration import run_on

    training = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return run_on(model, inputs)
    finally:
        for module, mode in training.items():
            module.training = mode


def _floats(output: Any) -> Iterable[Tensor]:
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


def _runs(original: nn.Module, quantized: nn.Module, inputs: Any, result: ValidationResult) -> None:
    expected = list(_floats(_call(original, inputs)))
    try:
        found = list(_floats(_call(quantized, inputs)))
    except Exception as e:
        result.errors.append(f"the quantized model does not run: {type(e).__name__}: {e}")
        return
    result.ran = True
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


def check_accuracy_warnings(
    result: QuantizationResult, accuracy_warning: str = "warn", sqnr_warning_threshold: float | None = None,
    sqnr_error_threshold: float | None = None,
) -> list[str]:
    """Warnings about a low SQNR, layer by layer and overall, added to `result.info.warnings`.

    accuracy_warning: "warn"; "error" raises ValidationError where the error threshold is not met; "ignore".
    Thresholds in dB; by default those of `LOW_SQNR_DB`.
    """
    if accuracy_warning not in ("error", "warn", "ignore"):
        raise ConfigurationError(f"accuracy_warning={accuracy_warning!r}", "'error', 'warn' or 'ignore'")
    info = result.info
    low, least = LOW_SQNR_DB[info.bits]
    low = low if sqnr_warning_threshold is None else sqnr_warning_threshold
    least = least if sqnr_error_threshold is None else sqnr_error_threshold
    if accuracy_warning == "ignore":
        return []
    found = []
    for name, sqnr in info.layer_sqnr_db.items():
        if sqnr < low:
            found.append(f"{name}: SQNR {sqnr:.1f} dB, under {low:g} dB")
    if info.sqnr_db is not None and info.sqnr_db < least:
        text = f"SQNR {info.sqnr_db:.1f} dB over all layers, under {least:g} dB"
        if accuracy_warning == "error":
            raise ValidationError(text, "more bits, smaller groups, weight_observer='mse', or skip the worst layers")
        found.append(text)
    info.warnings += [w for w in found if w not in info.warnings]
    return found


def is_quantized(model: nn.Module) -> bool:
    """Whether a module holds quantized ones."""
    return any(isinstance(m, QuantizedModule) for m in model.modules())
