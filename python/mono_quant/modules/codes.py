"""From stored codes to float32 weights.

A weight is a matrix of codes: its first axis, times all others flattened. Codes are signed, b bits each; packed, a row
is a little-endian stream of u = q + 2^(b-1) in int32 words. Decoding is ŵ = (q − z)·s in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightScheme:
    """How one weight is stored.

    bits: of a code; 8, or 2 or 4 if packed.
    group_size: neighbours within a row that share a scale; None: the whole row.
    symmetric: whether there is no zero point.
    packed: int32 words (`…_packed`), or int8 codes under the weight's own name.
    per_tensor: one scale for the whole weight.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = True
    packed: bool = True
    per_tensor: bool = False

    def __post_init__(self) -> None:
        if self.bits not in ((2, 4, 8) if self.packed else (8,)):
            raise ValueError(f"bits is {self.bits}: packed codes have 2, 4 or 8 bits, int8 codes 8")
        if self.group_size is not None and (self.per_tensor or self.group_size < 1):
            raise ValueError(f"group_size {self.group_size} with per_tensor {self.per_tensor}")

    def groups(self, columns: int) -> int:
        """Scales a row."""
        if self.group_size is None:
            return 1
        if columns % self.group_size:
            raise ValueError(f"groups of {self.group_size} do not divide rows of {columns}")
        return columns // self.group_size

    def __str__(self) -> str:
        share = "tensor" if self.per_tensor else "channel" if self.group_size is None else "group"
        size = "" if self.group_size is None else f"group_size={self.group_size}, "
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"bits={self.bits}, {size}scheme={kind}, strategy={share}"


def words(elements: int, bits: int) -> int:
    """int32 words that hold so many codes."""
    return -(-elements * bits // 32)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """int32 `[rows, words]` → int8 `[rows, columns]`."""
    # a clone has the usual strides also where an axis of one element leaves others possible
    packed = packed if packed.stride(-1) == 1 else packed.clone(memory_format=torch.contiguous_format)
    stream = packed.contiguous().view(torch.uint8)  # as little-endian machines see it; torch supports no others
    if bits < 8:
        mask = (1 << bits) - 1
        stream = torch.stack([(stream >> shift) & mask for shift in range(0, 8, bits)], dim=-1).flatten(1)
    # wraps modulo 256, which is what two's complement needs
    return (stream[:, :columns] - (1 << (bits - 1))).view(torch.int8)


def unpack_zero_points(packed: Tensor, bits: int, rows: int) -> Tensor:
    """int32 `[ceil(rows·bits/32), groups]`, packed along the first axis → int8 `[rows, groups]`."""
    return unpack(packed.t(), bits, rows).t()


def decode(codes: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """int8 `[rows, columns]`, scale `[rows, groups]` or `[1]`, int8 zero points of the same shape → float32."""
    if scale.dim() == 1:
        scale = scale.view(1, -1)
        zero_point = None if zero_point is None else zero_point.view(1, -1)
    rows, columns = codes.shape
    groups = scale.shape[1]
    weight = codes.reshape(rows, groups, columns // groups).float()
    if zero_point is not None:
        weight -= zero_point.unsqueeze(-1)
    weight *= scale.float().unsqueeze(-1)
    return weight.reshape(rows, columns)
