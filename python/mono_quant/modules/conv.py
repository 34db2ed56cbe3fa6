"""Convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from . import inputs
from .parts import INPUT_SCALE, INPUT_ZERO_POINT
from .weight import WithWeight

_CONFIG = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias", "padding_mode",
)  # fmt: skip


class _QuantizedConv(WithWeight):
    """The weight is decoded whole, then torch's own convolution runs.

    int8 inputs: torch has no int8 convolution without its quantized tensor types, so inputs are rounded to what int8
    can say and stay floats. Dynamic: one scale a sample, so that results do not depend on the rest of the batch.
    Static: the stored scale.
    """

    takes_inputs = True
    dims: ClassVar[int]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    """A size an axis, or "same" or "valid"."""
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    bias: nn.Parameter | None

    def _rounded(self, x: Tensor) -> Tensor:
        if self.inputs is None or not x.is_floating_point():
            return x
        scale = self._buffers.get(INPUT_SCALE)
        if scale is None:
            scale = inputs.dynamic_scale(x, tuple(range(-self.dims - 1, 0)))
        return inputs.fake_quantize(x, scale, self._buffers.get(INPUT_ZERO_POINT))

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x = self._rounded(x)
        dtype = x.dtype if x.is_floating_point() else self._compute_dtype
        return x, self._weight("weight", dtype), None if self.bias is None else self.bias.to(dtype)


class _Direct(_QuantizedConv):
    """Weight `[out, in/groups, k…]`."""

    config_names = _CONFIG
    _convolve: ClassVar[Callable[..., Tensor]]

    def forward(self, input: Tensor) -> Tensor:
        x, weight, bias = self._operands(input)
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._edges(), mode=self.padding_mode), 0
        return self._convolve(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _edges(self) -> list[int]:
        """Padding before and after each axis, the last axis first, as F.pad has it."""
        edges: list[int] = []
        for i in reversed(range(self.dims)):
            if self.padding == "same":
                total = self.dilation[i] * (self.kernel_size[i] - 1)
                edges += [total // 2, total - total // 2]
            elif self.padding == "valid":
                edges += [0, 0]
            else:
                edges += [self.padding[i]] * 2
        return edges


class QuantizedConv1d(_Direct):
    """`[…, in, l]` → `[…, out, l']`."""

    float_class = nn.Conv1d
    dims = 1
    _convolve = staticmethod(F.conv1d)


class QuantizedConv2d(_Direct):
    """`[…, in, h, w]` → `[…, out, h', w']`."""

    float_class = nn.Conv2d
    dims = 2
    _convolve = staticmethod(F.conv2d)


class _Transposed(_QuantizedConv):
    """Weight `[in, out/groups, k…]`: its rows, which scales belong to, are input channels."""

    config_names = (*_CONFIG, "output_padding")
    _convolve: ClassVar[Callable[..., Tensor]]

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        x, weight, bias = self._operands(input)
        padding = self.output_padding if output_size is None else self._output_padding(x, output_size)
        return self._convolve(x, weight, bias, self.stride, self.padding, padding, self.groups, self.dilation)

    def _output_padding(self, x: Tensor, output_size: Sequence[int]) -> list[int]:
        """What to add to the smallest output, so that it has this size, given with or without leading axes."""
        wanted = list(output_size)[-self.dims :]
        if len(output_size) not in (self.dims, x.dim()):
            raise ValueError(f"output_size {list(output_size)} for inputs of {x.dim()} axes")
        sizes = x.shape[-self.dims :]
        smallest = [
            (size - 1) * self.stride[i] - 2 * self.padding[i] + self.dilation[i] * (self.kernel_size[i] - 1) + 1
            for i, size in enumerate(sizes)
        ]
        if not all(low <= want < low + step for want, low, step in zip(wanted, smallest, self.stride)):
            largest = [low + step - 1 for low, step in zip(smallest, self.stride)]
            raise ValueError(f"output_size {wanted} is not between {smallest} and {largest}")
        return [want - low for want, low in zip(wanted, smallest)]


class QuantizedConvTranspose1d(_Transposed):
    """`[…, in, l]` → `[…, out, l']`."""

    float_class = nn.ConvTranspose1d
    dims = 1
    _convolve = staticmethod(F.conv_transpose1d)


class QuantizedConvTranspose2d(_Transposed):
    """`[…, in, h, w]` → `[…, out, h', w']`."""

    float_class = nn.ConvTranspose2d
    dims = 2
    _convolve = staticmethod(F.conv_transpose2d)
