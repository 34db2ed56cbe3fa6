"""QuantizationConfig, and the many names under which arguments are known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .exceptions import ConfigurationError
from .options import Options, layer_type, named

_SKIP_NAMES = ("skip", "modules_to_not_convert", "skip_layer_names", "skip_names")
_SKIP_TYPES = ("skip_layer_types", "skip_types")
_PLAIN = ("group_size", "observer", "activation_scheme", "weight_observer", "overrides", "on_nonfinite", "saturate",
          "per_channel")


@dataclass
class QuantizationConfig:
    """How weights are quantized, apart from which.

    dtype: torch.qint8 or torch.int8 (8 bits), torch.float16 (16 bits); or `bits` instead.
    """

    dtype: Any = None
    symmetric: bool = True
    per_channel: bool = True
    bits: int | None = None

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> QuantizationConfig:
        """A config of those arguments that it knows."""
        unknown = set(kwargs) - {"dtype", "symmetric", "per_channel", "bits"}
        if unknown:
            raise ConfigurationError(f"{', '.join(sorted(unknown))}: no such argument",
                                     "dtype, symmetric, per_channel, bits")
        return cls(**kwargs)

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of `quantize`."""
        bits = self.bits if self.bits is not None else bits_of(self.dtype)
        scheme = "symmetric" if self.symmetric else "asymmetric"
        return {"bits": bits, "scheme": scheme, "per_channel": self.per_channel}


def bits_of(dtype: Any) -> int:
    """The width of a dtype: torch's, or its name."""
    name = str(dtype).removeprefix("torch.")
    widths = {"None": 8, "qint8": 8, "int8": 8, "quint8": 8, "float16": 16, "half": 16, "quint4x2": 4, "int4": 4}
    if name not in widths:
        raise ConfigurationError(f"dtype={dtype!r}", "torch.qint8, torch.int8, torch.float16, or bits=4, 8 or 16")
    return widths[name]


def options_from(**kwargs: Any) -> Options:
    """Options from the arguments of `quantize`, under any of their names."""
    if "dtype" in kwargs and kwargs["dtype"] is not None:
        kwargs["bits"] = bits_of(kwargs["dtype"])
    kwargs.pop("dtype", None)
    if "symmetric" in kwargs:
        kwargs["scheme"] = "symmetric" if kwargs.pop("symmetric") else "asymmetric"
    found = {name: kwargs.pop(name) for name in ("bits", "dynamic", "scheme")}
    found |= {name: kwargs.pop(name) for name in _PLAIN if kwargs.get(name) is not None}
    found["exclude"] = tuple(named(p) for key in _SKIP_NAMES for p in _listed(key, kwargs.pop(key, None)))
    found["include"] = tuple(named(p) for p in _listed("layer_names", kwargs.pop("layer_names", None)))
    found["skip_types"] = tuple(
        kind if isinstance(kind, type) else layer_type(kind)
        for key in _SKIP_TYPES for kind in _listed(key, kwargs.pop(key, None))
    )
    types = kwargs.pop("layer_types", None)
    if types is not None:
        found["layer_types"] = tuple(dict.fromkeys(layer_type(t) for t in _listed("layer_types", types)))
        if not found["layer_types"]:
            raise ConfigurationError("layer_types is empty", "at least one, such as nn.Linear")
    threshold = kwargs.pop("skip_param_threshold", None)
    found["min_params"] = 0 if threshold is None else threshold
    leftover = {key for key in kwargs if kwargs[key] is not None}
    known = [*_PLAIN, *_SKIP_NAMES, *_SKIP_TYPES, "layer_names", "layer_types", "skip_param_threshold"]
    if leftover:
        raise ConfigurationError(f"{', '.join(sorted(leftover))}: no such argument", ", ".join(known))
    if not isinstance(found["dynamic"], bool):
        raise ConfigurationError(f"dynamic={found['dynamic']!r}", "True or False")
    kwargs.clear()
    return Options(**{k: v for k, v in found.items() if v is not None})


def _listed(key: str, value: Any) -> Iterable[Any]:
    if value is None:
        return ()
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if isinstance(value, (str, type)) or hasattr(value, "pattern"):
        return (value,)
    raise ConfigurationError(f"{key}={value!r}", "a list")
