"""Linear layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import inputs
from .parts import INPUT_SCALE, INPUT_ZERO_POINT
from .weight import WithWeight


class QuantizedLinear(WithWeight):
    """y = x Ŵᵀ + b: floating `[…, in]` → `[…, out]`. Also takes the place of transformers' Conv1D.

    int8 inputs are rounded per token (last axis; dynamic) or with the stored scale (static). They are multiplied as
    int8 where the CPU can (AVX-512 VNNI, one scale a row), else as the floats that the codes mean: equal but for
    rounding.
    """

    float_class = nn.Linear
    config_names = ("in_features", "out_features", "bias")
    takes_inputs = True
    in_features: int
    out_features: int
    bias: nn.Parameter | None

    @classmethod
    def _config_of(cls, original: nn.Module) -> dict[str, Any]:
        if hasattr(original, "nf"):  # Conv1D: files have its weight as [out, in]
            return {"in_features": original.nx, "out_features": original.nf, "bias": True}
        return super()._config_of(original)

    def forward(self, input: Tensor) -> Tensor:
        if self.inputs is None or not input.is_floating_point():
            return self._float(input)
        if input.shape[-1] != self.in_features:
            raise ValueError(f"inputs of {input.shape[-1]} features, expected {self.in_features}")
        scale, zero_point = self._buffers.get(INPUT_SCALE), self._buffers.get(INPUT_ZERO_POINT)
        if scale is None:
            scale = inputs.dynamic_scale(input, -1)
        if self._int8_product(input, zero_point):
            return self._int8(input, scale, zero_point)
        return self._float(inputs.fake_quantize(input, scale, zero_point))

    def _float(self, x: Tensor) -> Tensor:
        dtype = x.dtype if x.is_floating_point() else self._compute_dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        blocks = self._row_blocks("weight")
        kept = torch.is_grad_enabled() and x.requires_grad  # autograd holds all blocks until the backward
        if len(blocks) == 1 or kept:
            return F.linear(x, self._weight("weight", dtype), bias)
        y: Tensor | None = None
        for start, stop in blocks:
            block = self._decoded("weight", start, stop).to(dtype)
            part = F.linear(x, block, None if bias is None else bias[start:stop])
            # Not a list to concatenate: what stays between blocks keeps the allocator from giving their memory back.
            y = part.new_empty(*part.shape[:-1], self.out_features) if y is None else y
            y[..., start:stop] = part
        assert y is not None  # there is at least one block
        return y

    def _int8_product(self, x: Tensor, zero_point: Tensor | None) -> bool:
        scheme = self.schemes["weight"]
        return (
            inputs.INT8_MATMUL
            and x.device.type == "cpu"
            and scheme.bits == 8
            and scheme.group_size is None
            and inputs.exact_in_int32(self.in_features, scheme.symmetric and zero_point is None)
            and not (torch.is_grad_enabled() and x.requires_grad)
        )

    def _int8(self, x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        n = self.out_features
        codes = inputs.quantize(x, scale, zero_point).reshape(-1, self.in_features)
        weight, zero_points = self._codes("weight", 0, n), self._zero_points("weight", 0, n)
        y = inputs.int8_linear(codes.to(torch.int8), weight, zero_point, zero_points).float()
        y += codes.sum(1, keepdim=True) * 0  # NaN, which int8 lacks, in rows that had one
        y *= scale.float().reshape(-1, 1)
        y *= self._scales("weight", 0, n).float().view(1, -1)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], n).to(x.dtype)
