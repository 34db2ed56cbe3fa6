"""Modules of torch: from the caller's to a quantized copy."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from . import _native, _tensors, models
from .checkpoints import compute
from .exceptions import InputError
from .names import exactly
from .options import Options
from .results import QuantizationResult, info_of
from .run import Run, statistics

OBSERVED = ("linear", "conv1d", "conv2d", "convtranspose")
"""Layer types whose inputs may be int8."""


def quantize_module(model: Any, options: Options, run: Run) -> QuantizationResult:
    """A copy of the model with quantized modules. The model is only read, and run on calibration data. One that was
    compiled is taken as it was before."""
    if not isinstance(model, nn.Module):
        hint = "an instance of the class" if isinstance(model, type) else "an nn.Module, a state dict, or a path"
        raise InputError(f"{type(model).__name__} is no model", hint)
    model = models.unwrapped(model)
    models.check(model)
    state = models.state_of(model)
    layers, unfit = models.layers_of(model)
    types, tied = options.types(models.default_types(model)), _tensors.tied_names(state)
    static = options.bits == 8 and not options.dynamic
    unused: list[str] = []
    kept = models.kept_by_type(model, layers, state, options, unused)
    if options.bits != 16:
        kept |= models.parted(layers, types, tied, static)
    reasons = unfit | kept
    for other, name in tied.items():
        skip = next((pattern.word for pattern in options.exclude if pattern.matches(other)), None)
        if other in kept:
            kept[name] = kept[other]
        if skip is not None or other in kept:
            reasons.setdefault(name, f"tied to {other}: " + (kept.get(other) or f"skipped by name: '{skip}'"))
    arguments = options.arguments(types, tied) + ([f"--exclude={exactly(kept)}"] if kept else [])
    kinds = models.declared(layers, tied)
    given = _tensors.source(type(model).__name__, state, models.config_of(model))
    # refuses what it can before the model runs
    plan = _native.quantize_model(given, arguments, kinds)
    calibration = None
    if static:
        calibration = run.calibration if run.calibration is not None else _calibrate(model, plan, layers, options, run)
        with statistics(calibration) as more:
            plan = _native.quantize_model(given, arguments + more, kinds)
    outputs, report = compute(plan, run)
    quantized = models.build(model, layers, outputs, tied, json.loads(plan.rows))
    if options.bits == 16:
        models.half_rest(quantized)
    models.remember(quantized, plan.metadata)
    info = info_of(options, report, tied, reasons, getattr(calibration, "samples", 0))
    info.warnings += [*unused, *getattr(calibration, "warnings", [])]
    if static and run.calibration is not None:
        info.warnings += _of_another(run.calibration, model, info.skip_reasons)
    # parameters: buffers may be masks
    info.warnings += _tensors.not_finite({n: p for n, p in model.named_parameters() if n in info.skip_reasons})
    extra = [name for name in model.state_dict() if name.rpartition(".")[2] == "_extra_state"]
    info.warnings += [f"{name} is no tensor: it stays in the model, and is not saved to files" for name in extra]
    info.warnings += _sensitive(json.loads(plan.rows), layers)
    if options.bits == 16:
        info.warnings += _mixed(info.skip_reasons, state)
    return QuantizationResult(quantized, info, metadata=plan.metadata, order=list(outputs))


def _calibrate(model: nn.Module, plan: _native.Plan, layers: list[models.Layer], options: Options, run: Run) -> Any:
    """Statistics of the inputs of those layers that the plan quantizes; None if none of these takes int8 inputs."""
    from .calibration import calibrate

    run.check_device()
    schemes = {row["name"]: row["scheme"] for row in json.loads(plan.rows) if row.get("scheme")}
    chosen = {name for name, scheme in schemes.items() if scheme["activations"] != "float"}
    names = [layer.names[0] for layer in layers if layer.kind in OBSERVED and layer.key("weight") in chosen]
    if not names:
        return None
    return calibrate(model, run.calibration_data, observer=options.observer, layers=names,
                     num_calibration_samples=run.num_calibration_samples,
                     symmetric=options.activation_scheme == "symmetric", show_progress=run.show_progress)


def _of_another(calibration: Any, model: nn.Module, reasons: dict[str, str]) -> list[str]:
    """Warnings about statistics that were brought along and are not of this model, or of a part of it."""
    from .calibration import Calibration

    statistics = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
    modules = dict(model.named_modules(remove_duplicate=False))
    strange = [name for name in statistics.observers if name not in modules]
    missed = [name for name, reason in reasons.items() if reason == "not reached by calibration"]
    found = []
    if strange:
        found.append(f"the calibration has {len(strange)} layers that the model has not, such as {strange[0]}")
    if missed and not set(missed) & {f"{name}.weight" for name in statistics.unreached}:
        found.append(f"{len(missed)} layers stay float, as the calibration does not have them, such as {missed[0]}")
    return found


def _sensitive(rows: list[dict[str, Any]], layers: list[models.Layer]) -> list[str]:
    """Warnings about 4 bits where they usually cost much. Somebody asked for them: by default these layers stay."""
    kinds = {layer.key(weight): layer.kind for layer in layers for weight in layer.weights}
    linear = [name for name, kind in kinds.items() if kind == "linear"]
    coarse = [row["name"] for row in rows if (row.get("scheme") or {}).get("bits") == 4]
    found = {name: "an embedding" for name in coarse if kinds.get(name) == "embedding"}
    if len(linear) > 1 and linear[-1] in coarse:
        found[linear[-1]] = "the last projection"
    return [f"{name}: 4 bits on {what} usually cost much accuracy; 8 lose little" for name, what in found.items()]


def _mixed(reasons: dict[str, str], state: dict[str, Any]) -> list[str]:
    """What to say of a model that is half half, and half not."""
    wide = [name for name in reasons if state[name].is_floating_point() and state[name].dtype.itemsize > 2]
    if not wide:
        return []
    return [f"{len(wide)} tensors stay {state[wide[0]].dtype}, such as {wide[0]}: the model must convert between dtypes"]
