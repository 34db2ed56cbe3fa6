"""How weights are quantized, and which: as options of the command line, which is where they are explained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .exceptions import ConfigurationError, spoken
from .names import Pattern, exactly, named

LAYER_TYPES = ("linear", "conv1d", "conv2d", "convtranspose", "lstm", "gru", "embedding")
WEIGHT_OBSERVERS = ("minmax", "percentile", "histogram", "mse")
OBSERVERS = ("minmax", "moving_average", "histogram", "percentile")
SCHEMES = ("symmetric", "asymmetric")
FORMATS = ("compressed-tensors", "gptq", "awq")
_CLASSES = {
    "Linear": "linear", "Conv1D": "linear", "Conv1d": "conv1d", "Conv2d": "conv2d", "ConvTranspose1d": "convtranspose",
    "ConvTranspose2d": "convtranspose", "LSTM": "lstm", "GRU": "gru", "Embedding": "embedding",
    "EmbeddingBag": "embedding",
}
_OBSERVER_NAMES = {
    "minmaxobserver": "minmax", "movingaverageminmaxobserver": "moving_average", "movingaverageminmax": "moving_average",
    "moving_average_minmax": "moving_average", "histogramobserver": "histogram", "percentileobserver": "percentile",
}
_MOST = 2**32 - 1
"""The engine's largest group size."""


@dataclass
class Options:
    """Which layers `quantize` was asked to change, and how."""

    bits: int = 8
    dynamic: bool = False
    scheme: str = "symmetric"
    per_channel: bool = True
    group_size: int | None = None
    observer: Any = "histogram"
    activation_scheme: str = "symmetric"
    weight_observer: str | None = None
    layer_types: tuple[type | str, ...] | None = None
    include: tuple[Pattern, ...] = ()
    exclude: tuple[Pattern, ...] = ()
    skip_types: tuple[type | str, ...] = ()
    min_params: int = 0
    overrides: Mapping[Any, Mapping[str, Any]] = field(default_factory=dict)
    on_nonfinite: str = "refuse"
    saturate: bool = False
    format: str | Iterable[str] = "compressed-tensors"

    def __post_init__(self) -> None:
        if not is_int(self.bits) or self.bits not in (4, 8, 16):
            raise ConfigurationError(f"bits={self.bits!r}", "bits=4, bits=8 or bits=16 (FP16)")
        for name in ("dynamic", "per_channel", "saturate"):
            yes_or_no(name, getattr(self, name))
        one_of("scheme", self.scheme, SCHEMES)
        one_of("activation_scheme", self.activation_scheme, SCHEMES)
        observer_name(self.observer)
        if self.weight_observer is not None:
            one_of("weight_observer", self.weight_observer, WEIGHT_OBSERVERS)
        one_of("on_nonfinite", self.on_nonfinite, ("refuse", "keep"))
        if self.group_size is not None and (not is_int(self.group_size) or not 1 <= self.group_size <= _MOST):
            raise ConfigurationError(f"group_size={self.group_size!r}", "a whole number from 1 on, such as 32 or 128")
        if not self.per_channel and (self.bits != 8 or self.group_size is not None):
            raise ConfigurationError("per_channel=False: one scale a tensor is for 8 bits without groups", "bits=8")
        if not is_int(self.min_params) or self.min_params < 0:
            raise ConfigurationError(f"skip_param_threshold={self.min_params!r}", "a whole number from 0 on")
        if self.layer_types is not None and not self.layer_types:
            raise ConfigurationError("layer_types is empty", "at least one, such as nn.Linear")
        if not isinstance(self.overrides, Mapping):
            raise ConfigurationError(f"overrides={self.overrides!r}", "a dict of names and changes")
        self._overrides = [(named(pattern), _changes(pattern, changes)) for pattern, changes in self.overrides.items()]
        self._types = None if self.layer_types is None else tuple(dict.fromkeys(map(layer_type, self.layer_types)))
        self.formats = formats(self.format)
        if self.bits == 16:
            self._refuse_without_effect()

    def _refuse_without_effect(self) -> None:
        """As the command line does: silence would let somebody believe that these had an effect."""
        given = {
            "scheme": self.scheme != "symmetric", "group_size": self.group_size is not None,
            "weight_observer": self.weight_observer is not None, "overrides": bool(self.overrides),
            "layer_types": self.layer_types is not None, "format": self.formats != FORMATS[:1],
        }
        found = next((name for name, is_given in given.items() if is_given), None)
        if found is not None:
            raise ConfigurationError(f"{found} has no meaning with bits=16, which casts every float tensor",
                                     "bits=8 or bits=4; skip and layer_names choose what is cast")

    @property
    def weight_only(self) -> bool:
        """Whether a layout is wanted that cannot say that inputs are quantized."""
        return any(name != "compressed-tensors" for name in self.formats)

    @property
    def override_patterns(self) -> list[Pattern]:
        return [pattern for pattern, _ in self._overrides]

    def types(self, default: Iterable[str] = ("linear",)) -> tuple[str, ...]:
        """The engine's words for the layer types."""
        return self._types if self._types is not None else tuple(default)

    def arguments(self, types: Iterable[str] = ("linear",), tied: Mapping[str, str] | None = None) -> list[str]:
        """The options of `monoquant quantize` that mean the same.

        tied: other names of tensors, which count as much as those that the engine sees.
        """
        found = ["--bits", str(self.bits), "--min-params", str(self.min_params)]
        if self.bits != 16:
            found += ["--layer-types", ",".join(types), "--scheme", self.scheme, "--on-mismatch", "shrink"]
            found += ["--format", ",".join(self.formats)]
            if self.group_size is not None:
                found += ["--group-size", str(self.group_size)]
            if not self.per_channel:
                found += ["--strategy", "tensor"]
            if self.weight_observer is not None:
                found += ["--observer", self.weight_observer]
            for pattern, changes in self._overrides:
                found += [f"--override={regex}={changes}" for regex in _regexes(pattern, tied)]
        for pattern in self.include:
            found += [f"--include={regex}" for regex in _regexes(pattern, tied)]
        for pattern in self.exclude:
            found += [f"--exclude={regex}" for regex in _regexes(pattern, tied)]
        found += ["--on-nonfinite", self.on_nonfinite]
        return found + (["--saturate"] if self.saturate else [])

    def spoken(self, text: str) -> str:
        """A message of the engine's in the user's words."""
        text = spoken(text)
        for pattern in (*self.include, *self.exclude, *self.override_patterns):
            text = text.replace(f"'{pattern.regex}'", f"'{pattern.word}'")
        return text


def formats(value: str | Iterable[str]) -> tuple[str, ...]:
    """Names of layouts, each once."""
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    if not names or len(set(map(str, names))) != len(names):
        raise ConfigurationError(f"format={value!r}", "names of layouts, each once")
    for name in names:
        one_of("format", name, FORMATS)
    return names


def _regexes(pattern: Pattern, tied: Mapping[str, str] | None) -> Iterator[str]:
    yield pattern.regex
    others = {name: None for other, name in (tied or {}).items() if pattern.matches(other) and not pattern.matches(name)}
    if others:
        yield exactly(others)


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def one_of(what: str, value: Any, accepted: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in accepted:
        raise ConfigurationError(f"{what}={value!r}", " or ".join(repr(a) for a in accepted))


def yes_or_no(what: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{what}={value!r}", "True or False")


def _changes(pattern: Any, changes: Any) -> str:
    """The engine's words for the changes of an override."""
    keys: dict[str, tuple[str, tuple[Any, ...]]] = {
        "bits": ("bits", (4, 8, 16)), "group_size": ("group-size", ()), "scheme": ("scheme", SCHEMES),
        "strategy": ("strategy", ("tensor", "channel", "group")), "observer": ("observer", WEIGHT_OBSERVERS),
        "weight_observer": ("observer", WEIGHT_OBSERVERS),
    }
    what = f"overrides[{pattern!r}]"
    if not isinstance(changes, Mapping) or not changes or any(key not in keys for key in changes):
        raise ConfigurationError(f"{what}={changes!r}", f"a dict with some of {', '.join(keys)}")
    for key, value in changes.items():
        accepted = keys[key][1]
        if key == "group_size":
            fits = value == "channel" or (is_int(value) and 1 <= value <= _MOST)
        else:
            fits = not isinstance(value, (bool, float)) and value in accepted
        if not fits:
            suggestion = " or ".join(map(repr, accepted)) or "a whole number from 1 on, or 'channel'"
            raise ConfigurationError(f"{what}: {key}={value!r}", suggestion)
    return ",".join(f"{keys[key][0]}={value}" for key, value in changes.items())


def observer_name(observer: Any) -> str:
    """The short name of an observer, from itself, a class of ours, or an old name."""
    name = observer if isinstance(observer, str) else getattr(observer, "__name__", type(observer).__name__)
    name = _OBSERVER_NAMES.get(name.lower(), name.lower())
    one_of("observer", name, OBSERVERS)
    return name


def layer_type(kind: Any) -> str:
    """The engine's word for a class of layers or one that inherits from it, or for the word itself."""
    names = [kind] if isinstance(kind, str) else [base.__name__ for base in getattr(kind, "__mro__", ())]
    for name in names:
        found = _CLASSES.get(name, name.lower() if isinstance(kind, str) else "")
        if found in LAYER_TYPES:
            return found
    accepted = ", ".join(f"nn.{name}" for name in _CLASSES if name != "Conv1D")
    raise ConfigurationError(f"{kind!r} is no type of layer that can be quantized", accepted)


def is_standard(kind: type | str) -> bool:
    """Whether a type stands for all layers of its kind, and not for a class of one's own."""
    return isinstance(kind, str) or (kind.__name__ in _CLASSES and kind.__module__.startswith(("torch.", "transformers.")))
