"""Calibration data in all its forms, as calls of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import Dataset, IterableDataset

from .exceptions import InputError, MonoQuantError

FORMS = "a tensor, a tuple of inputs, a dict of keyword inputs, a list of these, or a DataLoader"


@dataclass
class Batch:
    """One call of the model."""

    number: int
    rows: int
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    whole: int | None = None
    """Rows before it was cut."""

    def __str__(self) -> str:
        shapes = [f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors((self.args, self.kwargs))]
        cut = f", cut from {self.whole} samples" if self.whole else ""
        return f"batch {self.number} ({', '.join(shapes)}{cut})"


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same with every tensor changed."""
    if isinstance(value, (Tensor, PackedSequence)):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _changed(part, change) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_changed(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


class Batches:
    """Iterates over `data` until `limit` samples were given; counts them.

    Inputs are moved to `device`, floating ones to `dtype`, and are copies, because a model may write into its inputs.
    What `forward` does not accept is left out and noted in `dropped`.

    cut: whether a batch that is larger than what is left is cut.
    InputError: data that is none, is empty, raises, or holds no tensors.
    """

    def __init__(
        self,
        data: Any,
        forward: Callable[..., Any],
        device: torch.device | None,
        dtype: torch.dtype | None,
        limit: int,
        cut: bool = True,
    ) -> None:
        self._data = data
        self._accepted = Accepted(forward)
        self._device, self._dtype, self._limit, self._cut = device, dtype, limit, cut
        self.samples = self.count = 0
        self.dropped: dict[str, None] = {}

    def __iter__(self) -> Iterator[Batch]:
        items = _items(self._data)
        while self.samples < self._limit:
            try:
                item = next(items)
            except StopIteration:
                break
            except MonoQuantError:
                raise
            except Exception as e:
                said = f"{type(e).__name__}: {first_line(e)}"
                raise InputError(f"batch {self.count}: the data raised {said}; see the cause") from e
            batch = self._batch(item)
            self.samples += batch.rows
            self.count += 1
            yield batch
        if self.count == 0:
            raise InputError(f"the calibration data is empty; accepted: {FORMS}")

    def filled(self, batch: Batch) -> str:
        """A hint if optional inputs were given by position: these may have been meant for something else."""
        optional = [name for name in self._accepted.names[1 : len(batch.args)] if name in self._accepted.optional]
        if not optional:
            return ""
        return f"if not all of a batch are inputs, give only those that are (forward got {', '.join(optional)} too)"

    def _batch(self, item: Any) -> Batch:
        n = self.count
        args, kwargs = self._arguments(item)
        found = list(tensors((args, kwargs)))
        if not found:
            raise InputError(f"batch {n} holds no tensor; accepted: {FORMS}")
        if found[0].numel() == 0:
            raise InputError(f"batch {n} is empty: its first tensor is {list(found[0].shape)}; leave it out")
        args, kwargs, dropped = self._accepted.select(args, kwargs)
        for what in dropped:
            self.dropped[what] = None
        if not args and not kwargs:
            raise InputError(f"batch {n}: forward accepts none of its inputs: {', '.join(dropped)}; see its signature")
        given = list(tensors((args, kwargs))) or found
        packed = next((p for p in (*args, *kwargs.values()) if isinstance(p, PackedSequence)), None)
        rows = given[0].shape[0] if given[0].dim() else 1
        left, whole = self._limit - self.samples, None
        if packed is not None:
            rows = int(packed.batch_sizes[0])
        elif self._cut and rows > left and all(t.dim() and t.shape[0] == rows for t in given):
            args, kwargs = _changed((args, kwargs), lambda t: t[:left])
            rows, whole = left, rows
        args, kwargs = _changed((args, kwargs), self._placed)
        return Batch(n, rows, args, kwargs, whole)

    def _arguments(self, item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(item, (Tensor, PackedSequence)):
            return (item,), {}
        if isinstance(item, Mapping):
            return (), {str(name): value for name, value in item.items()}
        if isinstance(item, (tuple, list)):
            return tuple(item), {}
        hint = "torch.from_numpy makes a tensor of it" if hasattr(item, "__array__") else f"accepted: {FORMS}"
        raise InputError(f"batch {self.count} is {_kind(item)}; {hint}")

    def _placed(self, value: Any) -> Any:
        if isinstance(value, PackedSequence):
            return value.to(device=self._device, dtype=self._dtype)  # type: ignore[call-arg, arg-type]
        value = value.detach()
        moved = value.to(device=self._device, dtype=self._dtype if value.is_floating_point() else None)
        return moved.clone() if moved is value else moved


def _items(data: Any) -> Iterator[Any]:
    if isinstance(data, (Tensor, PackedSequence, Mapping)):
        return iter([data])
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise InputError(
            f"{type(data).__name__} is a dataset of samples; torch.utils.data.DataLoader(dataset, batch_size=32) "
            "makes batches of it"
        )
    if isinstance(data, (str, bytes)):
        raise InputError(f"the calibration data is {_kind(data)}; accepted: {FORMS}")
    try:
        return iter(data)
    except TypeError:
        raise InputError(f"the calibration data is {_kind(data)}; accepted: {FORMS}") from None


def _kind(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


class Accepted:
    """What a forward takes: positional names, whether more of each kind are taken, and all names."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.names: list[str] = []
        self.optional: list[str] = []
        self.keywords: set[str] = set()
        self.any_positional = self.any_keyword = False
        schema = getattr(forward, "schema", None)
        if schema is not None:  # TorchScript; its first argument is the module
            self.names = [a.name for a in schema.arguments[1:]]
            self.keywords = set(self.names)
            self.optional = [a.name for a in schema.arguments[1:] if a.has_default_value()]
            return
        try:
            parameters = inspect.signature(forward).parameters.values()
        except (TypeError, ValueError):
            self.any_positional = self.any_keyword = True
            return
        for p in parameters:
            self.any_positional |= p.kind == p.VAR_POSITIONAL
            self.any_keyword |= p.kind == p.VAR_KEYWORD
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
                self.names.append(p.name)
                if p.default is not p.empty:
                    self.optional.append(p.name)
            if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD):
                self.keywords.add(p.name)

    def select(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], list[str]]:
        """As many positional inputs and the keyword inputs that are taken, and in words what is not."""
        dropped: list[str] = []
        if not self.any_positional and len(args) > len(self.names):
            taken = len(self.names)
            numbers = ", ".join(str(i + 1) for i in range(taken, len(args)))
            dropped.append(
                f"input {numbers} of {len(args)} in each batch was left out: forward takes {taken} "
                f"({', '.join(self.names)})"
            )
            args = args[:taken]
        if not self.any_keyword:
            others = [name for name in kwargs if name not in self.keywords]
            dropped += [f"input {name!r} was left out: forward does not take it" for name in others]
            kwargs = {name: value for name, value in kwargs.items() if name in self.keywords}
        return args, kwargs, dropped


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; of a TorchScript error, the last line, which has the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "(no message)"
    return lines[-1] if "TorchScript" in lines[0] else lines[0]
