"""QuantizationConfig, and the many names under which arguments are known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .exceptions import ConfigurationError
from .names import named
from .options import Options

_SKIP_NAMES = ("skip", "modules_to_not_convert", "skip_layer_names", "skip_names")
_SKIP_TYPES = ("skip_layer_types", "skip_types")
_PLAIN = ("group_size", "observer", "activation_scheme", "weight_observer", "overrides", "on_nonfinite", "saturate",
          "per_channel", "format")
_ALSO = ("dtype", "symmetric", "layer_names", "layer_types", "skip_param_threshold")


@dataclass
class QuantizationConfig:
    """How weights are quantized, apart from which.

    dtype: torch.qint8 or torch.int8 (8 bits), torch.float16 (16 bits); or `bits` instead.
    symmetric, per_channel: of integers.
    """

    dtype: Any = None
    symmetric: bool = True
    per_channel: bool = True
    bits: int | None = None

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> QuantizationConfig:
        """A config of those arguments that it knows. ConfigurationError: others."""
        unknown = set(kwargs) - {"dtype", "symmetric", "per_channel", "bits"}
        if unknown:
            raise ConfigurationError(f"{', '.join(sorted(unknown))}: no such argument",
                                     "dtype, symmetric, per_channel, bits")
        return cls(**kwargs)

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of `quantize`."""
        bits = self.bits if self.bits is not None else bits_of(self.dtype)
        if bits == 16:
            return {"bits": bits}
        scheme = "symmetric" if self.symmetric else "asymmetric"
        return {"bits": bits, "scheme": scheme, "per_channel": self.per_channel}


def config_from(config: Any, bits: int | None, **given: Any) -> QuantizationConfig:
    """`config`, or one of the other arguments where there is none."""
    if config is None:
        return QuantizationConfig(bits=bits, **given)
    if not isinstance(config, QuantizationConfig):
        raise ConfigurationError(f"config={config!r}", "a QuantizationConfig")
    if bits is not None:
        raise ConfigurationError(f"bits={bits!r} beside config=", "QuantizationConfig(bits=…)")
    return config


def bits_of(dtype: Any) -> int:
    """The width of a dtype: torch's, or its name."""
    name = str(dtype).removeprefix("torch.")
    widths = {"None": 8, "qint8": 8, "int8": 8, "quint8": 8, "float16": 16, "half": 16, "quint4x2": 4, "int4": 4}
    if name not in widths:
        raise ConfigurationError(f"dtype={dtype!r}", "torch.qint8, torch.int8, torch.float16, or bits=4, 8 or 16")
    return widths[name]


def options_from(**kwargs: Any) -> Options:
    """Options from the arguments of `quantize`, under any of their names."""
    known = [*_PLAIN, *_SKIP_NAMES, *_SKIP_TYPES, *_ALSO]
    unknown = set(kwargs) - {*known, "bits", "dynamic", "scheme"}
    if unknown:
        raise ConfigurationError(f"{', '.join(sorted(unknown))}: no such argument", ", ".join(known))
    found = {name: kwargs[name] for name in ("bits", "dynamic", "scheme")}
    if kwargs.get("dtype") is not None:
        found["bits"] = bits_of(kwargs["dtype"])
    symmetric = kwargs.get("symmetric")
    if symmetric is not None:
        if not isinstance(symmetric, bool):
            raise ConfigurationError(f"symmetric={symmetric!r}", "True or False")
        found["scheme"] = "symmetric" if symmetric else "asymmetric"
    found |= {name: kwargs[name] for name in _PLAIN if kwargs.get(name) is not None}
    found["exclude"] = tuple(named(p) for key in _SKIP_NAMES for p in _listed(key, kwargs.get(key)))
    if kwargs.get("layer_names") is not None and not list(_listed("layer_names", kwargs["layer_names"])):
        raise ConfigurationError("layer_names names no layer", "names of layers, or None for all")
    found["include"] = tuple(named(p) for p in _listed("layer_names", kwargs.get("layer_names")))
    found["skip_types"] = tuple(_type(key, kind) for key in _SKIP_TYPES for kind in _listed(key, kwargs.get(key)))
    if kwargs.get("layer_types") is not None:
        found["layer_types"] = tuple(_listed("layer_types", kwargs["layer_types"]))
    if kwargs.get("skip_param_threshold") is not None:
        found["min_params"] = kwargs["skip_param_threshold"]
    return Options(**found)


def _type(key: str, kind: Any) -> type | str:
    if not isinstance(kind, (type, str)) or not kind:
        raise ConfigurationError(f"{key}: {kind!r} is no type of layer", "classes such as nn.Linear, or their names")
    return kind


def _listed(key: str, value: Any) -> Iterable[Any]:
    if value is None:
        return ()
    if isinstance(value, (str, type)) or hasattr(value, "pattern"):
        return (value,)
    if not isinstance(value, Iterable):
        raise ConfigurationError(f"{key}={value!r}", "a list")
    return list(value)
