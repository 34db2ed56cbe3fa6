"""`quantize` and its siblings: any module, state dict or file in, a quantized model with its facts out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from .accuracy import check_result
from .checkpoints import quantize_checkpoint, quantize_file
from .config import QuantizationConfig, config_from, options_from
from .results import QuantizationInfo, QuantizationResult
from .run import Run, existing

_RUN = {field.name for field in fields(Run)}


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
    calibration_data: batches of inputs; see `calibrate`. With them, outputs are compared before the result is returned;
        without static inputs they serve for nothing else.
    show_progress: on stderr.

    Which layers: `layer_types` (`[nn.Linear, nn.Conv2d, nn.LSTM, …]`, own subclasses, or names; by default all but
    embeddings, and in models of transformers, state dicts and files the linear layers), `skip`/`modules_to_not_convert`/
    `skip_layer_names`/`skip_names` (names, globs, compiled regular expressions), `skip_layer_types`/`skip_types`
    (of any class, with all that is inside), `layer_names` (only these), `skip_param_threshold` (smaller layers stay), `overrides`
    (`{"fc1": {"bits": 4, "group_size": 32}}`). How: `group_size`, `per_channel`, `weight_observer` ("minmax",
    "percentile", "histogram", "mse"), `observer` ("histogram", "minmax", "moving_average", "percentile") and
    `activation_scheme` for static inputs, `num_calibration_samples`, `calibration` (a `Calibration` or its file),
    `on_nonfinite` ("refuse", "keep"), `saturate`, and from file to file `format` ("compressed-tensors", "gptq", "awq", or
    several: then each goes to a folder of `output`). Where: `device` ("auto", "cpu", "gpu", "gpu:N" as `monoquant
    devices` numbers them, an adapter's name, or several that share the work: "gpu:0,gpu:1"), `output` and `force` (file to
    file, streamed, for paths); then also `resume` (go on with what an unfinished run has finished), `verify` (hold the
    output against the input before it appears) and `report` (a JSON file that `monoquant reproduce` runs again),
    `max_memory` ("512MiB") and `max_shard_size` ("5GB"). Checks: `sample_input`, `run_validation`, `on_failure` ("error", "warn", "ignore"),
    `accuracy_warning`, `sqnr_warning_threshold`, `sqnr_error_threshold`.

    ConfigurationError: arguments that are not accepted, or static 8 bits without data. InputError: a model or file that
    is not what it should be. QuantizationError: nothing to quantize, NaN in weights. ValidationError: the result fails
    its check.
    """
    given = {name: kwargs.pop(name) for name in _RUN & kwargs.keys()}
    options = options_from(bits=bits, dynamic=dynamic, scheme=scheme, **kwargs)
    run = Run(calibration_data, show_progress, **given)
    path = isinstance(model, (str, os.PathLike))
    in_memory = not path and not isinstance(model, Mapping)
    run.refuse_contradictions(options, path, in_memory)
    if in_memory:
        from .nn_module import quantize_module

        result = quantize_module(model, options, run)
    elif run.output is not None:
        result = quantize_file(existing(model), options, run)
    else:
        result = quantize_checkpoint(existing(model) if path else model, options, run)
    check_result(model, result, run)
    return result


def dynamic_quantize(
    model: Any, dtype: Any = None, symmetric: bool = False, per_channel: bool = True,
    config: QuantizationConfig | None = None, modules_to_not_convert: Iterable[Any] | None = None,
    skip_layer_types: Iterable[Any] | None = None, skip_layer_names: Iterable[Any] | None = None,
    skip_param_threshold: int = 0, **kwargs: Any,
) -> tuple[Any, list[str]]:
    """Quantizes without data; returns the model and the names of what was skipped. See `quantize`."""
    config = config_from(config, kwargs.pop("bits", None), dtype=dtype, symmetric=symmetric, per_channel=per_channel)
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
    config = config_from(config, kwargs.pop("bits", None), dtype=dtype, symmetric=symmetric, per_channel=per_channel)
    result = quantize(model, dynamic=False, **config.arguments(), calibration_data=calibration_data,
                      layer_types=layer_types, skip_types=skip_types, layer_names=layer_names, skip_names=skip_names,
                      num_calibration_samples=num_calibration_samples, on_failure=on_failure,
                      run_validation=run_validation, group_size=group_size, accuracy_warning=accuracy_warning,
                      sqnr_warning_threshold=sqnr_warning_threshold, sqnr_error_threshold=sqnr_error_threshold, **kwargs)
    return result.model, result.info
