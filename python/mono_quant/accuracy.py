"""Warnings about what quantization lost."""

from __future__ import annotations

from typing import Any

from .exceptions import ValidationError

from .results import QuantizationResult
from .run import Run, thresholds

LOW_SQNR_DB = {8: (20.0, 10.0), 4: (12.0, 6.0), 16: (20.0, 10.0)}
"""By bits: under the first a warning, under the second an error. Gaussian weights reach 40 dB at 8 bits a channel and 19
at 4 bits in groups of 128."""


def check_accuracy_warnings(
    result: QuantizationResult, accuracy_warning: str = "warn", sqnr_warning_threshold: float | None = None,
    sqnr_error_threshold: float | None = None,
) -> list[str]:
    """Warnings about a low SQNR, layer by layer and overall, added to `result.info.warnings`.

    accuracy_warning: "warn"; "error" raises ValidationError where the error threshold is not met; "ignore".
    Thresholds in dB; by default those of `LOW_SQNR_DB`, by the bits that were asked for.
    """
    thresholds(accuracy_warning, sqnr_warning_threshold, sqnr_error_threshold)
    info = result.info
    low, least = LOW_SQNR_DB[info.bits]
    low = low if sqnr_warning_threshold is None else sqnr_warning_threshold
    least = least if sqnr_error_threshold is None else sqnr_error_threshold
    if accuracy_warning == "ignore":
        return []
    found = [f"{name}: SQNR {sqnr:.1f} dB, under {low:g} dB" for name, sqnr in info.layer_sqnr_db.items() if sqnr < low]
    if info.sqnr_db is not None and info.sqnr_db < least:
        text = f"SQNR {info.sqnr_db:.1f} dB over all layers, under {least:g} dB"
        if accuracy_warning == "error":
            raise ValidationError(text, "more bits, smaller groups, weight_observer='mse', or skip the worst layers")
        found.append(text)
    info.warnings += [w for w in found if w not in info.warnings]
    return found


def check_result(model: Any, result: QuantizationResult, run: Run) -> None:
    """The checks before a result is handed out: by default outputs are compared if there is an input."""
    sample = run.sample_input
    if sample is None and run.calibration_data is not None:
        from .validation import first_inputs

        sample = first_inputs(run.calibration_data)
    if run.run_validation or (run.run_validation is None and sample is not None):
        result.info.warnings += result.validate(model, run.on_failure, sample_input=sample).warnings
    elif result.model is not None and run.run_validation is None:
        from .validation import check_loading

        check_loading(model, result.model, run.on_failure)
    check_accuracy_warnings(result, run.accuracy_warning, run.sqnr_warning_threshold, run.sqnr_error_threshold)
