"""Arguments of the Python functions as options of the command line, which is where they are checked and explained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .exceptions import ConfigurationError

LAYER_TYPES = ("linear", "conv1d", "conv2d", "convtranspose", "lstm", "gru", "embedding")
WEIGHT_OBSERVERS = ("minmax", "percentile", "histogram", "mse")
OBSERVERS = ("minmax", "moving_average", "histogram", "percentile")
SCHEMES = ("symmetric", "asymmetric")
_CLASSES = {
    "Linear": "linear", "Conv1D": "linear", "Conv1d": "conv1d", "Conv2d": "conv2d", "ConvTranspose1d": "convtranspose",
    "ConvTranspose2d": "convtranspose", "LSTM": "lstm", "GRU": "gru", "Embedding": "embedding",
    "EmbeddingBag": "embedding",
}
_OBSERVER_NAMES = {
    "minmaxobserver": "minmax", "movingaverageminmaxobserver": "moving_average", "movingaverageminmax": "moving_average",
    "moving_average_minmax": "moving_average", "histogramobserver": "histogram", "percentileobserver": "percentile",
}


@dataclass
class Options:
    """Everything that `quantize` was asked for."""

    bits: int = 8
    dynamic: bool = False
    scheme: str = "symmetric"
    per_channel: bool = True
    group_size: int | None = None
    observer: str = "histogram"
    activation_scheme: str = "symmetric"
    weight_observer: str | None = None
    layer_types: tuple[str, ...] | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    skip_types: tuple[type | str, ...] = ()
    min_params: int = 0
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    on_nonfinite: str = "refuse"
    saturate: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (4, 8, 16):
            raise ConfigurationError(f"bits={self.bits!r}", "bits=4, bits=8 or bits=16 (FP16)")
        _one_of("scheme", self.scheme, SCHEMES)
        _one_of("activation_scheme", self.activation_scheme, SCHEMES)
        self.observer = observer_name(self.observer)
        if self.weight_observer is not None:
            _one_of("weight_observer", self.weight_observer, WEIGHT_OBSERVERS)
        _one_of("on_nonfinite", self.on_nonfinite, ("refuse", "keep"))
        if self.group_size is not None and (not _is_int(self.group_size) or self.group_size < 1):
            raise ConfigurationError(f"group_size={self.group_size!r}", "a whole number from 1 on, such as 32 or 128")
        if not self.per_channel and (self.bits != 8 or self.group_size is not None):
            raise ConfigurationError("per_channel=False: one scale a tensor is for 8 bits without groups", "bits=8")
        if not _is_int(self.min_params) or self.min_params < 0:
            raise ConfigurationError(f"skip_param_threshold={self.min_params!r}", "a whole number from 0 on")

    def arguments(self, default_types: Iterable[str] = ("linear",)) -> list[str]:
        """The options of `monoquant quantize` that mean the same."""
        types = self.layer_types if self.layer_types is not None else tuple(default_types)
        found = ["--bits", str(self.bits), "--layer-types", ",".join(types), "--min-params", str(self.min_params)]
        if self.bits != 16:
            found += ["--scheme", self.scheme, "--on-mismatch", "shrink"]
            if self.group_size is not None:
                found += ["--group-size", str(self.group_size)]
            if not self.per_channel:
                found += ["--strategy", "tensor"]
            if self.weight_observer is not None:
                found += ["--observer", self.weight_observer]
            for pattern, changes in self.overrides.items():
                found += [f"--override={named(pattern)}={_changes(pattern, changes)}"]
        elif self.overrides:
            raise ConfigurationError("overrides with bits=16, which casts every float tensor", "bits=8 or bits=4")
        found += [f"--include={pattern}" for pattern in self.include]
        found += [f"--exclude={pattern}" for pattern in self.exclude]
        found += ["--on-nonfinite", self.on_nonfinite]
        return found + (["--saturate"] if self.saturate else [])


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(what: str, value: Any, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ConfigurationError(f"{what}={value!r}", " or ".join(repr(a) for a in accepted))


def _changes(pattern: str, changes: Any) -> str:
    keys = {"bits": "bits", "group_size": "group-size", "scheme": "scheme", "strategy": "strategy",
            "observer": "observer", "weight_observer": "observer"}
    if not isinstance(changes, Mapping) or not changes or any(key not in keys for key in changes):
        raise ConfigurationError(f"overrides[{pattern!r}]={changes!r}", f"a dict with some of {', '.join(keys)}")
    return ",".join(f"{keys[key]}={value}" for key, value in changes.items())


def observer_name(observer: Any) -> str:
    """The short name of an observer, from itself, a class of ours, or an old name."""
    name = observer if isinstance(observer, str) else getattr(observer, "__name__", type(observer).__name__)
    name = _OBSERVER_NAMES.get(name.lower(), name.lower())
    _one_of("observer", name, OBSERVERS)
    return name


def layer_type(kind: Any) -> str:
    """The engine's word for a class of layers, or for the word itself."""
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    found = _CLASSES.get(name, name.lower())
    if found not in LAYER_TYPES:
        accepted = ", ".join(f"nn.{name}" for name in _CLASSES if name != "Conv1D")
        raise ConfigurationError(f"layer_types: {kind!r} cannot be quantized", accepted)
    return found


def named(pattern: str | re.Pattern[str]) -> str:
    """A regular expression of the engine's for a module's name.

    A compiled pattern is taken as it is, a glob (`encoder.*.fc?`) covers whole names, and any other text is a name or
    a part of one between dots: `fc1`, `encoder.0`.
    """
    if isinstance(pattern, re.Pattern):
        return pattern.pattern
    if not isinstance(pattern, str) or not pattern:
        raise ConfigurationError(f"{pattern!r} is no name of a layer", "a name, a glob, or a compiled regular expression")
    if any(c in pattern for c in "*?["):
        return rf"^{_glob(pattern)}(\.[^.]+)?$"
    return rf"(^|\.){escaped(pattern)}(\.|$)"


def escaped(text: str) -> str:
    """Text as a regular expression of the engine's that means just itself."""
    return re.sub(r"([\\.+*?()|\[\]{}^$#&\-~])", r"\\\1", text)


def _glob(pattern: str) -> str:
    out, rest = "", pattern
    while rest:
        match = re.match(r"\[(!?)([^\]]+)\]", rest)
        if match:
            out += f"[{'^' if match[1] else ''}{match[2]}]"
            rest = rest[match.end():]
            continue
        out += {"*": ".*", "?": "."}.get(rest[0], escaped(rest[0]))
        rest = rest[1:]
    return out
