"""What can go wrong, with what to do about it."""

from __future__ import annotations

import re

# The engine speaks of the command line's options; these are the arguments that mean the same, longer matches first.
_WORDS = [
    (r"invalid value '(.*?)' for '--\S+ <\S+>': ", r"'\1' is not accepted: "),
    (r"--include, --layer-types and --min-params choose others",
     "layer_names, layer_types and skip_param_threshold choose others"),
    (r" \(--dry-run lists all\)", " (changes and skip_reasons list all)"),
    (r"excluded by --exclude '(.*)'", r"skipped by name: '\1'"),
    (r"not matched by --include", "not among layer_names"),
    (r"--(?:in|ex)clude '(.*)' matches no tensor", r"'\1' matches no layer"),
    (r"--override '(.*)' matches no tensor", r"overrides: '\1' matches no layer"),
    (r"--on-nonfinite keep", "on_nonfinite='keep'"),
    (r"--on-mismatch channel or keep is better", "a larger group_size or skip=[…] is better"),
    (r"--output NAME\.pt", "a name that ends in .pt"),
    (r"--output names", "output= names"),
    (r"--include", "layer_names=[…]"),
    (r"--exclude", "skip=[…]"),
    (r"--layer-types", "layer_types"),
    (r"--min-params (\d+)", r"skip_param_threshold=\1"),
    (r"--strategy tensor", "per_channel=False"),
    (r"--saturate", "saturate=True"),
    (r"the same command with --resume goes on", "the same call with resume=True goes on"),
    (r"--resume", "resume=True"),
    (r"--report ", "report="),
    (r"--force", "force=True (overwrite=True where a model is saved)"),
    (r"--device (\S+):", r"device='\1':"),
    (r"--device (\S+)", r"device='\1'"),
    (r"--dtype f32", "dtype=torch.float32"),
    (r"--calibration", "calibration="),
    (r"--bits (\d+)", r"bits=\1"),
    (r"monoquant dequantize", "dequantize_model"),
]
_ENGINE = [(re.compile(engine), ours) for engine, ours in _WORDS]


def spoken(text: str) -> str:
    """A message of the engine's in words of these functions."""
    for engine, ours in _ENGINE:
        text = engine.sub(ours, text)
    return text


class MonoQuantError(Exception):
    """The base of all. `suggestion` says what would work, or is None.

    Without an explicit suggestion, what follows the last semicolon of the message is taken for it: the engine's
    messages end so.
    """

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        if suggestion is None and "; " in message:
            suggestion = message.rsplit("; ", 1)[1]
        self.suggestion = suggestion

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.suggestion)


class ConfigurationError(MonoQuantError, ValueError):
    """Arguments that are not accepted, or contradict each other. Raised before any work."""


class InputError(MonoQuantError):
    """A model, file or calibration input that is not what it should be."""


class QuantizationError(MonoQuantError):
    """A model that cannot be quantized as asked."""


class ValidationError(MonoQuantError):
    """A result that does not hold what was asked of it."""


def of_engine(name: str, message: str) -> MonoQuantError:
    """The exception of this name for a message of the engine's."""
    classes = {c.__name__: c for c in (ConfigurationError, InputError, QuantizationError)}
    return classes[name](spoken(message))
