"""Names of layers as users write them, as regular expressions of the engine's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .exceptions import ConfigurationError

_FLAGS = {re.IGNORECASE: "i", re.MULTILINE: "m", re.DOTALL: "s", re.VERBOSE: "x"}
_FOREIGN = re.compile(r"\(\?<?[=!]|\\[1-9]|\(\?P=|\(\?\(")


@dataclass(frozen=True)
class Pattern:
    """Which layers a user meant."""

    regex: str
    """Searched in the names of tensors."""
    word: str
    """What the user wrote."""

    def matches(self, name: str) -> bool:
        return re.search(self.regex, name) is not None


def named(pattern: Any) -> Pattern:
    """A compiled pattern is taken as it is, a glob (`encoder.*.fc?`) covers whole names, and any other text is a name or
    a part of one between dots: `fc1`, `encoder.0`."""
    if isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, str):
        if _FOREIGN.search(pattern.pattern):
            raise ConfigurationError(f"{pattern.pattern!r} looks around or back, which the engine's expressions cannot",
                                     "a simpler expression, or several")
        flags = "".join(letter for flag, letter in _FLAGS.items() if pattern.flags & flag)
        return Pattern(f"(?{flags}){pattern.pattern}" if flags else pattern.pattern, pattern.pattern)
    if not isinstance(pattern, str) or not pattern:
        raise ConfigurationError(f"{pattern!r} is no name of a layer", "a name, a glob, or a compiled regular expression")
    if any(c in pattern for c in "*?["):
        return Pattern(rf"^{_glob(pattern)}(\.[^.]+)?$", pattern)
    return Pattern(rf"(^|\.){_escaped(pattern)}(\.|$)", pattern)


def exactly(names: Iterable[str]) -> str:
    """A regular expression for these names alone."""
    return f"^(?:{'|'.join(map(_escaped, names))})$"


def _escaped(text: str) -> str:
    return re.sub(r"([\\.+*?()|\[\]{}^$#&\-~])", r"\\\1", text)


def _glob(pattern: str) -> str:
    out, rest = "", pattern
    while rest:
        match = re.match(r"\[(!?)([^\]]+)\]", rest)
        if match:
            out += f"[{'^' if match[1] else ''}{match[2]}]"
            rest = rest[match.end():]
            continue
        out += {"*": ".*", "?": "."}.get(rest[0], _escaped(rest[0]))
        rest = rest[1:]
    return out
