"""What can go wrong, with what to do about it."""

from __future__ import annotations

# The engine speaks of the command line's options; these are the arguments that mean the same.
_ARGUMENTS = {
    "--on-nonfinite keep": "on_nonfinite='keep'",
    "--dry-run lists why each tensor is kept": "the plan keeps every tensor",
    "--output NAME.pt": "a name that ends in .pt",
    "--output": "output=",
    "--include": "layer_names=",
    "--exclude": "skip=",
    "--layer-types": "layer_types=",
    "--min-params": "skip_param_threshold=",
    "--group-size": "group_size=",
    "--override": "overrides=",
    "--observer": "weight_observer=",
    "--strategy tensor": "per_channel=False",
    "--saturate": "saturate=True",
    "--force": "force=True (overwrite=True where a model is saved)",
    "--device": "device=",
    "--calibration": "calibration=",
    "--bits": "bits=",
}


class MonoQuantError(Exception):
    """The base of all. `suggestion` says what would work, or is None.

    Without an explicit suggestion, what follows the last semicolon of the message is taken for it: the engine's
    messages end so.
    """

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        for option, argument in _ARGUMENTS.items():
            message = message.replace(option, argument)
        super().__init__(message)
        if suggestion is None and "; " in message:
            suggestion = message.rsplit("; ", 1)[1]
        self.suggestion = suggestion


class ConfigurationError(MonoQuantError, ValueError):
    """Arguments that are not accepted, or contradict each other. Raised before any work."""


class InputError(MonoQuantError):
    """A model, file or calibration input that is not what it should be."""


class QuantizationError(MonoQuantError):
    """A model that cannot be quantized as asked."""


class ValidationError(MonoQuantError):
    """A result that does not hold what was asked of it."""
