"""Observers of activations: which range do the values have that a layer is given?

Thin faces of the engine's observers. Ranges and qparams are those of `torch.ao.quantization`'s observers, bit for bit,
on the same data; PercentileObserver has no model there. Formulas: section 7 of the design notes, quoted at
`Observer.calculate_qparams`.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import _native
from ._tensors import plain
from .exceptions import ConfigurationError, InputError, QuantizationError
from .options import observer_name


class Observer:
    """What all observers share. Not made directly.

    axis (or ch_axis, as torch calls it): every index along this axis gets a range of its own; None: one range for all.
    """

    kind: ClassVar[str]
    """The engine's word."""

    def __init__(self, value: float | None = None, axis: int | None = None, ch_axis: int | None = None) -> None:
        if axis is not None and ch_axis is not None and axis != ch_axis:
            raise ConfigurationError(f"axis={axis} and ch_axis={ch_axis} are two names of one thing; give one")
        axis = ch_axis if axis is None else axis
        if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool) or axis < 0):
            raise ConfigurationError(f"axis={axis!r}; a whole number from 0 on, or None")
        self.axis = axis
        self._value = value
        try:
            self._native = _native.Observer(self.kind, value, axis)
        except QuantizationError as e:  # the engine refuses values, here they are arguments
            raise ConfigurationError(str(e), e.suggestion) from None

    def observe(self, x: Tensor) -> Tensor:
        """Takes in `x` and returns it. Any shape, strides, device and floating dtype; it is read as float32. Empty
        tensors are skipped.

        Infinities are dropped by HistogramObserver and PercentileObserver; in the others they spoil the range, and
        `calculate_qparams` then refuses.

        InputError: no dense floating tensor, NaN in it, or other channels than before; the observer is as it was.
        """
        self._take(x, None)
        return x

    __call__ = forward = observe

    def _take(self, x: Tensor, samples: int | None) -> None:
        """`samples` is how many samples `x` is made of, where that is not its first dimension; one, if it cannot be."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"{found} cannot be observed; a tensor of floats can")
        values = plain("the observed tensor", x).to(torch.float32).contiguous()
        if not values.numel():
            return
        shape = list(values.shape)
        if samples is not None:
            rows = samples if values.numel() % samples == 0 else 1
            shape = [rows, values.numel() // rows]
        try:
            self._native.observe(values.data_ptr(), shape, values)
        except QuantizationError as e:
            raise InputError(str(e), e.suggestion) from None

    def calculate_qparams(
        self, bits: int = 8, symmetric: bool = False, signed: bool = True, reduce_range: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32), both `[1]`, or `[channels]` with an axis; on the CPU.

        With the range widened to include 0 and codes from qmin to qmax (int8: −128 to 127; `signed=False`: 0 to 255;
        `reduce_range`: half of that; fewer bits: torch's custom range):

            symmetric: scale = max(−low, high) / ((qmax − qmin) / 2), zero point 0 (unsigned, 8 bits: 128)
            affine:    scale = (high − low) / (qmax − qmin), zero point = clamp(qmin − round half even(low / scale))

        and no scale below float32's epsilon. Source: `UniformQuantizationObserverBase._calculate_qparams` of
        torch.ao.quantization. Symmetric codes with `reduce_range` must be signed.

        QuantizationError: nothing was observed yet, or the range is infinite.
        """
        scales, zero_points, _, _ = self._native.qparams(bits, symmetric, signed, reduce_range)
        return torch.tensor(scales, dtype=torch.float32, device="cpu"), torch.tensor(zero_points, dtype=torch.int32, device="cpu")

    def range(self) -> tuple[Tensor, Tensor] | None:
        """Low and high that suit affine codes of 8 bits: float32 `[1]` or `[channels]`. None before any data.

        HistogramObserver and PercentileObserver may clip: this is what is left.
        """
        found = self._native.ranges()
        if found is None:
            return None
        low, high = zip(*found)
        return torch.tensor(low, dtype=torch.float32, device="cpu"), torch.tensor(high, dtype=torch.float32, device="cpu")

    @property
    def min_val(self) -> Tensor:
        """The lower end of what was seen (of moving averages: of the average), as torch has it: float32, a scalar, or
        `[channels]` with an axis. Before any data +∞, or empty with an axis."""
        return self._end(0)

    @property
    def max_val(self) -> Tensor:
        """The upper end; see `min_val`."""
        return self._end(1)

    def _end(self, end: int) -> Tensor:
        found = self._native.ranges()
        if found is None:
            return torch.empty(0) if self.axis is not None else torch.tensor(-math.inf if end else math.inf)
        values = [pair[end] for pair in found]
        return torch.tensor(values, dtype=torch.float32) if self.axis is not None else torch.tensor(values[0])

    @property
    def facts(self) -> dict[str, Any]:
        """What was seen: batches, samples (the sum of first dimensions), values, infinities, and extremes (the smallest
        and largest finite number, or None)."""
        facts: dict[str, Any] = json.loads(self._native.facts)
        return facts

    def state(self) -> dict[str, Any]:
        """Everything, as plain numbers, strings, lists and dicts."""
        state: dict[str, Any] = json.loads(self._native.state)
        return state

    @staticmethod
    def from_state(state: dict[str, Any]) -> Observer:
        """An observer from its `state()`, which goes on where that one was. ConfigurationError: not such a state."""
        return _of_native(_native.Observer.from_state(json.dumps(state)))

    def fresh(self) -> Observer:
        """One like this that has seen nothing."""
        other = copy.copy(self)
        other._native = _native.Observer(self.kind, self._value, self.axis)
        return other

    def __copy__(self) -> Observer:
        return Observer.from_state(self.state())

    def __reduce__(self) -> tuple[Any, ...]:  # the engine's part cannot be pickled
        return Observer.from_state, (self.state(),)

    def _settings(self) -> str:
        return ""

    def __repr__(self) -> str:
        found = self.range()
        if found is None:
            seen = "no data"
        elif self.axis is None:
            seen = f"range [{found[0].item():.6g}, {found[1].item():.6g}]"
        else:
            seen = f"{len(found[0])} channels in [{found[0].min().item():.6g}, {found[1].max().item():.6g}]"
        axis = "" if self.axis is None else f"axis={self.axis}"
        return f"{type(self).__name__}({', '.join(filter(None, [self._settings(), axis, seen]))})"


class MinMaxObserver(Observer):
    """The smallest and the largest value of all; torch's MinMaxObserver, with an axis PerChannelMinMaxObserver."""

    kind = "minmax"

    def __init__(self, axis: int | None = None, ch_axis: int | None = None) -> None:
        super().__init__(None, axis, ch_axis)


class MovingAverageMinMaxObserver(Observer):
    """The first batch's extremes, then low += c·(batch's low − low), and so with high; c is averaging_constant, in
    (0, 1]. torch's MovingAverageMinMaxObserver, with an axis MovingAveragePerChannelMinMaxObserver."""

    kind = "moving_average"

    def __init__(
        self, averaging_constant: float = 0.01, axis: int | None = None, ch_axis: int | None = None
    ) -> None:
        self.averaging_constant = _number("averaging_constant", averaging_constant)
        super().__init__(self.averaging_constant, axis, ch_axis)

    def _settings(self) -> str:
        return f"averaging_constant={self.averaging_constant:g}"


class _Clipping(Observer):
    """Observers whose range may be narrower than the values."""

    def _end(self, end: int) -> Tensor:
        extremes = self.facts["extremes"]
        return super()._end(end) if extremes is None else torch.tensor(extremes[end], dtype=torch.float32)


class HistogramObserver(_Clipping):
    """The range with the least expected squared error, found on a histogram of `bins` bins (8 to 32768); torch's
    HistogramObserver. Without an axis: one range for all.

    `calculate_qparams(bits=…)` below 8 searches for that many codes, as torch does with its `dst_nbins` set.
    """

    kind = "histogram"

    def __init__(self, bins: int = 2048, axis: int | None = None, ch_axis: int | None = None) -> None:
        if not isinstance(bins, int) or isinstance(bins, bool) or bins < 1:
            raise ConfigurationError(f"bins={bins!r}; a whole number from 8 to 32768")
        self.bins = bins
        super().__init__(bins, axis, ch_axis)

    def _settings(self) -> str:
        return f"bins={self.bins}"


class PercentileObserver(_Clipping):
    """The central `percentile` percent of the values, in (50, 100]; the rest is clipped. Without an axis.

    An affine range cuts both tails by half of the rest each, a symmetric one the largest |x|; ONNX Runtime and
    TensorRT do so. Exact for bfloat16 values, else within 0.4 %, in whichever order the values come.
    """

    kind = "percentile"

    def __init__(self, percentile: float = 99.99, axis: int | None = None, ch_axis: int | None = None) -> None:
        self.percentile = _number("percentile", percentile)
        super().__init__(self.percentile, axis, ch_axis)

    def _settings(self) -> str:
        return f"percentile={self.percentile:g}"


_CLASSES: tuple[type[Observer], ...] = (
    MinMaxObserver, MovingAverageMinMaxObserver, HistogramObserver, PercentileObserver,
)  # fmt: skip
_STORED: dict[str, type[Observer]] = {
    "min_max": MinMaxObserver, "moving_average_min_max": MovingAverageMinMaxObserver,
    "histogram": HistogramObserver, "percentile": PercentileObserver,
}  # fmt: skip


def _number(what: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigurationError(f"{what}={value!r}; a number")
    return float(value)


def _of_native(native: _native.Observer) -> Observer:
    """The class that its kind says, around the engine's observer."""
    state = json.loads(native.state)
    kind = state["kind"]
    settings: dict[str, Any] = {}
    if isinstance(kind, dict):
        ((kind, settings),) = kind.items()
    found = _STORED[kind](**settings, axis=state["axis"])
    found._native = native
    return found


def maker(observer: Any) -> Callable[[], Observer]:
    """What makes observers of layers' inputs: from a name, a class of ours, or an observer whose settings are taken.

    ConfigurationError: none of these, or an axis: a layer's inputs take one scale.
    """
    if isinstance(observer, Observer):
        if observer.axis is not None:
            raise ConfigurationError(f"{observer!r}: inputs take one scale, not one a channel; leave out axis")
        return observer.fresh
    if isinstance(observer, type) and issubclass(observer, Observer):
        return observer
    name = observer_name(observer)
    return next(cls for cls in _CLASSES if cls.kind == name)
