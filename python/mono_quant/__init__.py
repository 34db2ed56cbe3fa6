"""Quantizes neural-network weights on any GPU, or none, to the same bytes.

    from mono_quant import quantize
    result = quantize(model, bits=8, dynamic=True)
    result.model(inputs)
    result.save("model.safetensors")

Files are quantized without torch: `quantize("model.pt", bits=4, output="model-int4.safetensors")`.

With `RUST_LOG=monoquant=info` in the environment, the engine logs on stderr what it decides for each tensor and how long
each stage takes; `debug` adds every tile. It does not go through `logging`.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Mesa's device-select layer writes an error about a missing desktop to stderr; it has nothing to select here.
os.environ.setdefault("NODEVICE_SELECT", "1")

from ._native import version
from .accuracy import check_accuracy_warnings
from .api import dynamic_quantize, quantize, static_quantize
from .checkpoints import convert_model
from .config import QuantizationConfig
from .exceptions import ConfigurationError, InputError, MonoQuantError, QuantizationError, ValidationError
from .results import QuantizationInfo, QuantizationResult

if TYPE_CHECKING:
    from .calibration import Calibration, calibrate
    from .io import dequantize_model, load_model, revert_to_standard_modules, save_model
    from .modules import (
        QuantizedConv1d,
        QuantizedConv2d,
        QuantizedConvTranspose1d,
        QuantizedConvTranspose2d,
        QuantizedEmbedding,
        QuantizedEmbeddingBag,
        QuantizedGRU,
        QuantizedLinear,
        QuantizedLSTM,
        QuantizedModule,
    )
    from .observers import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver, PercentileObserver
    from .validation import ValidationResult, validate_quantization

__version__ = version()

# These need torch, which files do not: they are imported when they are first asked for.
_LATER = {
    "calibration": ("Calibration", "calibrate"),
    "io": ("dequantize_model", "load_model", "revert_to_standard_modules", "save_model"),
    "modules": ("QuantizedConv1d", "QuantizedConv2d", "QuantizedConvTranspose1d", "QuantizedConvTranspose2d",
                "QuantizedEmbedding", "QuantizedEmbeddingBag", "QuantizedGRU", "QuantizedLSTM", "QuantizedLinear",
                "QuantizedModule"),
    "observers": ("HistogramObserver", "MinMaxObserver", "MovingAverageMinMaxObserver", "PercentileObserver"),
    "validation": ("ValidationResult", "validate_quantization"),
}
_PLACES = {name: module for module, names in _LATER.items() for name in names}

__all__ = [
    "Calibration", "ConfigurationError", "HistogramObserver", "InputError", "MinMaxObserver", "MonoQuantError",
    "MovingAverageMinMaxObserver", "PercentileObserver", "QuantizationConfig", "QuantizationError", "QuantizationInfo",
    "QuantizationResult", "QuantizedConv1d", "QuantizedConv2d", "QuantizedConvTranspose1d", "QuantizedConvTranspose2d",
    "QuantizedEmbedding", "QuantizedEmbeddingBag", "QuantizedGRU", "QuantizedLSTM", "QuantizedLinear",
    "QuantizedModule", "ValidationError", "ValidationResult", "calibrate", "check_accuracy_warnings",
    "convert_model", "dequantize_model", "dynamic_quantize", "load_model", "quantize", "revert_to_standard_modules", "save_model",
    "static_quantize", "validate_quantization",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
