"""Seeing the inputs of layers in programs that have no modules to hook: by torch's calls of operators.

A linear layer or convolution is known by its weight: the operator is given a view of the very memory that the
program's state dict has under `NAME.weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {
    "aten::mm": [(0, 1), (1, 0)],
    "aten::bmm": [(0, 1), (1, 0)],
    "aten::matmul": [(0, 1), (1, 0)],
    "aten::mv": [(1, 0)],
    "aten::addmm": [(1, 2), (2, 1)],
    "aten::_addmm_activation": [(1, 2), (2, 1)],
    "aten::baddbmm": [(1, 2), (2, 1)],
    "aten::addmv": [(2, 1)],
}
"""Operator → where (input, weight) may be."""
_OPERANDS = _PRODUCTS | dict.fromkeys(
    ["aten::linear", "aten::convolution", "aten::_convolution", "aten::convolution_overrideable"]
    + [f"aten::conv{kind}{n}d" for n in (1, 2) for kind in ("", "_transpose")],
    [(0, 1)],
)
_TRAINING = {"aten::native_dropout": 2, "aten::dropout": 2} | dict.fromkeys(
    ["aten::batch_norm", "aten::native_batch_norm", "aten::_native_batch_norm_legit",
     "aten::_native_batch_norm_legit_functional", "aten::cudnn_batch_norm"], 5
)  # fmt: skip
"""Operator → where it is told that the model is being trained."""

Key = tuple[int, torch.dtype, int]


class LayerInputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, calls `observe(names, x)` before a weight of `state` is multiplied with `x`.

    names: the modules that have this weight; several where weights are tied. A linear layer's input may come flattened
    to `[rows, in]`. That of a convolution with another padding_mode than zeros comes padded, as that is done by an
    operator of its own: ranges are the same, but HistogramObserver and PercentileObserver count the margins too.
    """

    supports_higher_order_operators = True  # torch.cond and the like; their branches are watched too

    def __init__(self, state: Mapping[str, Tensor], observe: Callable[[list[str], Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._observe = observe
        self._names: dict[Key, list[str]] = {}
        for name, tensor in state.items():
            module, _, last = name.rpartition(".")
            if last == "weight" and tensor.dim() in (2, 3, 4) and tensor.is_floating_point():
                key = _key(tensor)
                if key is not None:
                    self._names.setdefault(key, []).append(module)
        self.others: dict[str, str] = {}
        """Modules whose weight went into an operator that is not watched, and that operator."""
        self.embeddings: set[str] = set()
        """Modules whose weight was looked up in."""
        self.training: dict[str, None] = {}
        """Operators that were told that the model is being trained."""
        self.error: Exception | None = None
        """What an operator, or `observe`, raised; TorchScript forgets all but its type."""

    @property
    def layers(self) -> list[str]:
        """Modules with weights that could be watched for."""
        return [name for names in self._names.values() for name in names]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, which takes seconds, to keep it from compiling this class

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return self._call(func, args, kwargs or {})
        except Exception as e:
            self.error = self.error or e
            raise

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(func, torch._ops.OpOverload):
            return func(*[self._inside(a) for a in args], **kwargs)
        name = func._schema.name
        for x, weight in _OPERANDS.get(name, ()):
            names = self._of(args[weight])
            if names and isinstance(args[x], Tensor) and args[x].is_floating_point():
                self._observe(names, args[x])
                break
        else:
            self._note(func, name, args)
        return func(*args, **kwargs)

    def _note(self, func: Any, name: str, args: Any) -> None:
        training = _TRAINING.get(name)
        if training is not None and len(args) > training and args[training] is True:
            self.training[name] = None
        if getattr(func, "is_view", False) or not name.startswith("aten::"):
            return
        for tensor in _tensors(args):
            for layer in self._of(tensor):
                if "embedding" in name or name in ("aten::index_select", "aten::index", "aten::gather"):
                    self.embeddings.add(layer)
                else:
                    self.others.setdefault(layer, name)

    def _of(self, tensor: Any) -> list[str]:
        key = _key(tensor) if isinstance(tensor, Tensor) else None
        return self._names.get(key, []) if key is not None else []

    def _inside(self, value: Any) -> Any:
        """A function that watches while it runs: torch takes the mode away before it calls an operator."""
        if isinstance(value, torch.nn.Module) or (callable(value) and not isinstance(value, type)):

            def watched(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return value(*args, **kwargs)

            return watched
        return value


def _key(tensor: Tensor) -> Key | None:
    """Equal for a tensor and those of its views that hold all of it: transposed, expanded, reshaped."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return None
    try:
        address = tensor.data_ptr()
    except RuntimeError:  # fake tensors, which have no memory
        return None
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        count *= size if stride else 1
    return (address, tensor.dtype, count) if address and count else None


def _tensors(args: Any) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
