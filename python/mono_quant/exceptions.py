"""What can go wrong, with what to do about it."""

from __future__ import annotations


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


class ConfigurationError(MonoQuantError, ValueError):
    """Arguments that are not accepted, or contradict each other. Raised before any work."""


class InputError(MonoQuantError):
    """A model, file or calibration input that is not what it should be."""


class QuantizationError(MonoQuantError):
    """A model that cannot be quantized as asked."""


class ValidationError(MonoQuantError):
    """A result that does not hold what was asked of it."""
