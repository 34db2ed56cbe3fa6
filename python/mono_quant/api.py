"""`quantize` and its siblings: any module, state dict or file in, a quantized model with its facts out."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _native
from .config import QuantizationConfig, options_from
from .exceptions import ConfigurationError, InputError
from .options import Options
from .progress import Progress
from .results import MEGABYTE, QuantizationInfo, QuantizationResult

if TYPE_CHECKING:
    import torch

RUN = ("device", "output", "force", "sample_input", "on_failure", "run_validation", "accuracy_warning",
       "sqnr_warning_threshold", "sqnr_error_threshold", "num_calibration_samples", "calibration")


def quantize(
    model: Any,
    bits: int = 8,
    dynamic: bool = False,
    scheme: str = "symmetric",
    calibration_data: Any = None,
    show_progress: bool = False,
    **kwargs: Any,
) -> QuantizationResult:
    """Quantizes a model. The model itself is never changed.

    model: an `nn.Module` (the result's `model` is a copy that runs), a state dict (the result's is one), or the path
        of a checkpoint: `.safetensors`, `.pt`, `.pth`, `.bin`, TorchScript, or a directory.
    bits: 8 (int8, a scale a channel), 4 (int4, a scale a group of 128 weights along the inputs) or 16 (FP16).
    dynamic: at 8 bits, whether inputs are quantized with scales found while running, which needs no data. If not,
        scales of inputs are found by running `calibration_data` through the module and are stored. Weights of 4 and 16
        bits take float inputs and need no data.
    scheme: "symmetric", or "asymmetric" with zero points.
    calibration_data: batches of inputs; see `calibrate`.
    show_progress: on stderr.

    Which layers: `layer_types` (`[nn.Linear, nn.Conv2d, nn.LSTM, …]` or names), `skip`/`modules_to_not_convert`/
    `skip_layer_names`/`skip_names` (names, globs, compiled regular expressions), `skip_layer_types`/`skip_types`,
    `layer_names` (only these), `skip_param_threshold` (smaller layers stay), `overrides`
    (`{"fc1": {"bits": 4, "group_size": 32}}`). How: `group_size`, `per_channel`, `weight_observer` ("minmax",
    "percentile", "histogram", "mse"), `observer` ("histogram", "minmax", "moving_average", "percentile") and
    `activation_scheme` for static inputs, `num_calibration_samples`, `calibration` (a `Calibration` or its file),
    `on_nonfinite` ("refuse", "keep"), `saturate`. Where: `device` ("auto", "cpu", "gpu", an adapter's name), `output`
    and `force` (file to file, streamed, for paths). Checks: `sample_input`, `run_validation`, `on_failure` ("error",
    "warn", "ignore"), `accuracy_warning`, `sqnr_warning_threshold`, `sqnr_error_threshold`.

    ConfigurationError: arguments that are not accepted, or static 8 bits without data. InputError: a model or file that
    is not what it should be. QuantizationError: nothing to quantize, NaN in weights. ValidationError: the result fails
    its check.
    """
    run = {name: kwargs.pop(name) for name in RUN if name in kwargs}
    options = options_from(bits=bits, dynamic=dynamic, scheme=scheme, **kwargs)
    return _quantize(model, options, calibration_data, show_progress, **run)


def dynamic_quantize(
    model: Any, dtype: Any = None, symmetric: bool = False, per_channel: bool = True,
    config: QuantizationConfig | None = None, modules_to_not_convert: Iterable[Any] | None = None,
    skip_layer_types: Iterable[Any] | None = None, skip_layer_names: Iterable[Any] | None = None,
    skip_param_threshold: int = 0, **kwargs: Any,
) -> tuple[Any, list[str]]:
    """Quantizes without data; returns the model and the names of what was skipped. See `quantize`."""
    config = config or QuantizationConfig.from_kwargs(dtype=dtype, symmetric=symmetric, per_channel=per_channel,
                                                      bits=kwargs.pop("bits", None))
    result = quantize(model, dynamic=True, **config.arguments(), modules_to_not_convert=modules_to_not_convert,
                      skip_layer_types=skip_layer_types, skip_layer_names=skip_layer_names,
                      skip_param_threshold=skip_param_threshold, **kwargs)
    return result.model, result.info.skipped_layers


def static_quantize(
    model: Any, calibration_data: Any, dtype: Any = None, symmetric: bool = False, per_channel: bool = True,
    config: QuantizationConfig | None = None, layer_types: Iterable[Any] | None = None,
    skip_types: Iterable[Any] | None = None, layer_names: Iterable[Any] | None = None,
    skip_names: Iterable[Any] | None = None, num_calibration_samples: int = 150, on_failure: str = "error",
    run_validation: bool = True, group_size: int | None = None, accuracy_warning: str = "warn",
    sqnr_warning_threshold: float = 20.0, sqnr_error_threshold: float = 10.0, **kwargs: Any,
) -> tuple[Any, QuantizationInfo]:
    """Quantizes with the ranges that calibration data show; returns the model and its facts. See `quantize`."""
    config = config or QuantizationConfig.from_kwargs(dtype=dtype, symmetric=symmetric, per_channel=per_channel,
                                                      bits=kwargs.pop("bits", None))
    result = quantize(model, dynamic=False, **config.arguments(), calibration_data=calibration_data,
                      layer_types=layer_types, skip_types=skip_types, layer_names=layer_names, skip_names=skip_names,
                      num_calibration_samples=num_calibration_samples, on_failure=on_failure,
                      run_validation=run_validation, group_size=group_size, accuracy_warning=accuracy_warning,
                      sqnr_warning_threshold=sqnr_warning_threshold, sqnr_error_threshold=sqnr_error_threshold, **kwargs)
    return result.model, result.info


def _quantize(model: Any, options: Options, data: Any, show_progress: bool, **run: Any) -> QuantizationResult:
    device, output = run.pop("device", "auto"), run.pop("output", None)
    force, calibration = run.pop("force", False), run.pop("calibration", None)
    if run.get("on_failure", "error") not in ("error", "warn", "ignore"):
        raise ConfigurationError(f"on_failure={run['on_failure']!r}", "'error', 'warn' or 'ignore'")
    path = isinstance(model, (str, os.PathLike))
    static = options.bits == 8 and not options.dynamic
    if output is not None and not path:
        raise ConfigurationError("output= is for paths", "result.save(path)")
    if static and calibration is None and (data is None or path or isinstance(model, Mapping)):
        what = "a file or state dict cannot run" if data is not None else "no calibration_data was given"
        raise ConfigurationError(
            f"static quantization needs data that ran through the model, and {what}",
            "pass calibration_data=[…] with a module, calibration=FILE, or dynamic=True",
        )
    if output is not None:
        return _file_to_file(str(model), options, calibration, device, output, force, show_progress)
    if path:
        return _checkpoint(model, str(Path(model).expanduser()), options, calibration, device, show_progress)
    if isinstance(model, Mapping):
        return _checkpoint(model, None, options, calibration, device, show_progress)
    return _module(model, options, data, calibration, device, show_progress, run)


class _Statistics:
    """`--calibration FILE` for a file, or for statistics in memory by way of a temporary one."""

    def __init__(self, calibration: Any) -> None:
        self.calibration, self.folder = calibration, None

    def __enter__(self) -> list[str]:
        if self.calibration is None:
            return []
        if isinstance(self.calibration, (str, os.PathLike)):
            return ["--calibration", str(self.calibration)]
        self.folder = tempfile.TemporaryDirectory()
        file = Path(self.folder.name) / "statistics.json"
        file.write_text(self.calibration.to_json())
        return ["--calibration", str(file)]

    def __exit__(self, *_: object) -> None:
        if self.folder is not None:
            self.folder.cleanup()


def _file_to_file(
    model: str, options: Options, calibration: Any, device: str, output: Any, force: bool, show_progress: bool
) -> QuantizationResult:
    with _Statistics(calibration) as statistics:
        arguments = options.arguments() + statistics
        progress = Progress("quantize", 1, show_progress)

        def advance(done: int, total: int) -> None:
            progress.total = max(total, 1)
            progress(done)

        report = json.loads(_native.quantize_file(model, str(output), arguments, device, force, advance))
        progress.finish()
    return QuantizationResult(None, _info(options, report, 0), path=Path(report["output"]))


def _checkpoint(
    model: Any, path: str | None, options: Options, calibration: Any, device: str, show_progress: bool
) -> QuantizationResult:
    from . import _tensors

    if path is None:
        import torch

        wrong = [k for k, v in model.items() if not isinstance(v, torch.Tensor)]
        if wrong or not model:
            what = f"{wrong[0]!r} is no tensor" if wrong else "it is empty"
            raise InputError(f"the dict is no state dict: {what}", "pass model.state_dict()")
    with _Statistics(calibration) as statistics:
        given = path if path is not None else _tensors.source("state dict", model)
        plan = _native.quantize_model(given, options.arguments() + statistics)
    outputs, report = _run(plan, device, show_progress)
    tensors = _tensors.with_tied(outputs, plan.tied)
    if path is None:
        origin = {name: tensor.device for name, tensor in model.items()}
        tensors = {n: t.to(_origin(n, origin)) for n, t in tensors.items()}
    return QuantizationResult(tensors, _info(options, report, 0), metadata=plan.metadata, order=list(outputs))


def _origin(name: str, devices: Mapping[str, Any]) -> Any:
    from ._tensors import SUFFIXES

    stems = (name.removesuffix(suffix) for suffix in SUFFIXES)
    return next((devices[stem] for stem in stems if stem in devices), "cpu")


def _run(plan: Any, device: str, show_progress: bool) -> tuple[dict[str, torch.Tensor], dict]:
    from . import _tensors

    progress = Progress("quantize", plan.work, show_progress)
    outputs, report = _tensors.run(plan, device, progress if show_progress else None)
    progress.finish()
    return outputs, report


def _module(
    model: Any, options: Options, data: Any, calibration: Any, device: str, show_progress: bool, run: dict[str, Any]
) -> QuantizationResult:
    from torch import nn

    from . import _tensors, models

    if not isinstance(model, nn.Module):
        raise InputError(f"a {type(model).__name__} is no model", "pass an nn.Module, a state dict, or a path")
    layers, unfit = models.candidates(model)
    types = options.layer_types if options.layer_types is not None else models.default_types(model)
    skipped = {}
    for layer in layers:
        if any(layer.kind == t or isinstance(t, type) and isinstance(layer.module, t) for t in options.skip_types):
            skipped.update({layer.key(w): f"{type(layer.module).__name__} is skipped" for w in layer.weights})
    state = models.state_of(model)
    tied = _tensors.tied_names(state)
    if options.bits != 16:
        apart = models.parted(layers, types, tied)
        skipped |= {name: f"tied to {other}, of another kind" for name, other in apart.items()}
    arguments = options.arguments(types) + [f"--exclude={models.exactly(name)}" for name in skipped]
    kinds = {layer.key(weight): layer.kind for layer in layers for weight in layer.weights}
    given = _tensors.source(type(model).__name__, state, models.config_of(model))
    # refuses what it can before the model runs
    plan = _native.quantize_model(given, arguments, kinds)
    calibrated = None
    if options.bits == 8 and not options.dynamic:
        calibrated = calibration if calibration is not None else _calibrate(model, plan, layers, data, options,
                                                                             show_progress, run)
        with _Statistics(calibrated) as statistics:
            plan = _native.quantize_model(given, arguments + statistics, kinds)
    outputs, report = _run(plan, device, show_progress)
    rows = json.loads(plan.rows)
    quantized = models.build(model, layers, outputs, tied, rows)
    if options.bits == 16:
        models.half_rest(quantized)
    info = _info(options, report, getattr(calibrated, "samples", 0))
    info.skip_reasons = info.skip_reasons | skipped | unfit
    info.warnings += getattr(calibrated, "warnings", [])
    result = QuantizationResult(quantized, info, metadata=plan.metadata, order=list(outputs))
    models.remember(quantized, plan.metadata)
    _check(model, result, data, run)
    return result


def _calibrate(
    model: Any, plan: Any, layers: list[Any], data: Any, options: Options, show_progress: bool, run: dict[str, Any]
) -> Any:
    from .calibration import calibrate

    chosen = {row["name"] for row in json.loads(plan.rows) if row.get("scheme")}
    names = [layer.name for layer in layers
             if layer.kind in ("linear", "conv1d", "conv2d", "convtranspose") and layer.key("weight") in chosen]
    return calibrate(model, data, observer=options.observer, layers=names,
                     num_calibration_samples=run.get("num_calibration_samples", 150),
                     symmetric=options.activation_scheme == "symmetric", show_progress=show_progress)


def _check(model: Any, result: QuantizationResult, data: Any, run: dict[str, Any]) -> None:
    """The checks before a result is handed out."""
    from .validation import check_accuracy_warnings, first_inputs, validate_quantization

    sample = run.get("sample_input")
    if sample is None and data is not None:
        sample = first_inputs(data)
    if run.get("run_validation", sample is not None):
        found = validate_quantization(model, result, sample_input=sample, on_failure=run.get("on_failure", "error"))
        result.info.max_error, result.info.output_error = found.max_error, found.output_error
        result.info.warnings += [w for w in found.warnings if w not in result.info.warnings]
    check_accuracy_warnings(result, accuracy_warning=run.get("accuracy_warning", "warn"),
                            sqnr_warning_threshold=run.get("sqnr_warning_threshold"),
                            sqnr_error_threshold=run.get("sqnr_error_threshold"))


def _info(options: Options, report: dict, samples: int) -> QuantizationInfo:
    entries = report["tensors"]
    done = [e for e in entries if e["action"] != "kept"]
    kept = [e for e in entries if e["action"] == "kept"]
    group = next((e["scheme"]["strategy"] for e in done if e.get("scheme")), None)
    group = group.get("group", {}).get("group_size") if isinstance(group, dict) else None
    before, after = report["bytes_before"], report["bytes_after"]
    return QuantizationInfo(
        selected_layers=_modules(done),
        skipped_layers=_modules([e for e in kept if e["name"].rpartition(".")[2].startswith("weight")]),
        skip_reasons={e["name"]: e.get("reason") or "kept" for e in kept},
        changes={e["name"]: e["reason"] for e in done if e.get("reason")},
        calibration_samples_used=samples,
        bits=options.bits,
        dtype=_dtype(options.bits),
        symmetric=options.scheme == "symmetric",
        scheme=options.scheme,
        group_size=group,
        dynamic=options.dynamic,
        sqnr_db=report.get("sqnr_db"),
        layer_sqnr_db={e["name"]: e["sqnr_db"] for e in entries if e.get("sqnr_db") is not None},
        original_size_mb=before / MEGABYTE,
        quantized_size_mb=after / MEGABYTE,
        compression_ratio=before / after if after else 1.0,
        warnings=list(report["warnings"]),
        notes=list(report["notes"]),
        device=report["device"],
        seconds=report["seconds"],
    )


def _dtype(bits: int) -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        return None
    return {8: torch.int8, 4: torch.uint8, 16: torch.float16}[bits]


def _modules(entries: list[dict]) -> list[str]:
    names = (e["name"].rpartition(".") for e in entries)
    return list(dict.fromkeys(module if last.startswith("weight") else f"{module}.{last}".lstrip(".")
                              for module, _, last in names))
