"""Names of a layer's tensors in a file, and checking what came under them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from .codes import WeightScheme

PACKED, SCALE, ZERO_POINT, SHAPE = "_packed", "_scale", "_zero_point", "_shape"
INPUT_SCALE, INPUT_ZERO_POINT = "input_scale", "input_zero_point"


def scheme_of(name: str, shape: tuple[int, ...], parts: Mapping[str, Tensor], bits: int) -> WeightScheme | None:
    """The scheme that the parts of a weight have; None where it is not quantized."""
    packed = name + PACKED in parts
    if not packed and name + SCALE not in parts:
        return None
    if name + SCALE not in parts:
        raise ValueError(f"{name}{SCALE} is missing")
    scale, columns = parts[name + SCALE], math.prod(shape[1:])
    per_tensor = scale.dim() < 2
    groups = 1 if per_tensor else scale.shape[1]
    if groups < 1 or columns % groups:
        raise ValueError(f"{name}{SCALE} has {groups} groups for rows of {columns}")
    group_size = None if groups == 1 else columns // groups
    return WeightScheme(bits, group_size, name + ZERO_POINT not in parts, packed, per_tensor)


def taken(parts: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """Takes a part out, if it has the shape, and the dtype or another floating one, of `like`."""
    if name not in parts:
        raise ValueError(f"{name} is missing")
    part = parts.pop(name).detach()
    fits = part.is_floating_point() if like.is_floating_point() else part.dtype == like.dtype
    if not fits or (part.shape != like.shape and not part.numel() == like.numel() == 1):
        raise ValueError(
            f"{name} is {part.dtype} {list(part.shape)}, where {like.dtype} {list(like.shape)} was expected"
        )
    return part.contiguous()
