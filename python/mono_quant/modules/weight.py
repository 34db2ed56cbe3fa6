"""The `weight` that other code looks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import QuantizedModule


class WithWeight(QuantizedModule):
    """A module with one weight, which can be read as that of the float class can."""

    @property
    def weight(self) -> Tensor:
        """The decoded weight in `compute_dtype`, made anew each time: for code that looks at `module.weight`, such as
        nn.MultiheadAttention. `state_dict` has the codes."""
        weight = self._weight("weight", self._compute_dtype)
        return weight if self.inputs is None else weight.as_subclass(_OfQuantizedInputs)


class _OfQuantizedInputs(torch.Tensor):
    """Keeps nn.TransformerEncoderLayer off its fast path, which takes a Linear's weight and does not call the Linear,
    so that inputs would stay float. It avoids tensors that have a `__torch_function__`."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))
