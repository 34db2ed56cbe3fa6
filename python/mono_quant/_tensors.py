"""torch's tensors for the engine, and the engine's results as tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import _native
from .exceptions import InputError

Source = str | tuple[str, list[tuple[Any, ...]], dict[str, str], str | None, dict[str, str]]


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same elements of the same memory."""
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def plain(name: str, tensor: Tensor) -> Tensor:
    """The tensor on the CPU, without gradient; its memory is shared where it can be."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise InputError(f"{name}: a {tensor.layout} tensor, or one quantized by torch; make it dense and float")
    if tensor.is_meta:
        raise InputError(f"{name}: a tensor on the device meta holds no data; load the weights first")
    tensor = tensor.detach().cpu()
    return tensor.resolve_conj().resolve_neg() if tensor.is_conj() or tensor.is_neg() else tensor


def finite(tensor: Tensor) -> bool:
    """Whether all values are, without a copy of the tensor."""
    if tensor.dtype not in _FLOATS or not tensor.numel():
        return True
    return all(bool(bound.isfinite()) for bound in tensor.detach().aminmax())


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Warnings about tensors that stay as they are."""
    return [f"{name} holds NaN or infinity" for name, tensor in tensors.items() if not finite(tensor)]


def tied_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are an earlier one: other name → its name."""
    first: dict[tuple[Any, ...], str] = {}
    tied = {}
    for name, tensor in tensors.items():
        if tensor.numel() and tensor.layout == torch.strided and not tensor.is_meta:
            kept = first.setdefault(_identity(tensor), name)
            if kept != name:
                tied[name] = kept
    return tied


def source(
    what: str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Source:
    """Tensors in memory as the engine takes them: by address, each with what keeps it alive."""
    tied = tied_names(tensors)
    entries = []
    for name, tensor in tensors.items():
        if name in tied:
            continue
        cpu = plain(name, tensor)
        dtype = str(cpu.dtype).removeprefix("torch.")
        entries.append((name, dtype, list(cpu.shape), list(cpu.stride()), cpu.data_ptr(), cpu))
    text = None if config is None else json.dumps(config, default=str)
    return (what, entries, tied, text, dict(metadata or {}))


def run(plan: _native.Plan, device: str, progress: Callable[[int], None] | None = None) -> tuple[dict[str, Tensor], dict]:
    """Computes a plan: its tensors by name, in order, and the engine's report."""
    made = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, dtype, shape in plan.outputs}
    places = [(tensor.data_ptr(), tensor.nbytes, tensor) for tensor in made.values()]
    return made, json.loads(plan.run(places, device, progress))


def with_tied(tensors: dict[str, Tensor], tied: Mapping[str, str]) -> dict[str, Tensor]:
    """Adds the other names of tensors, and of the parts of a weight."""
    result = dict(tensors)
    for other, name in tied.items():
        for part, tensor in tensors.items():
            if part.startswith(name) and part.removeprefix(name) in SUFFIXES:
                result.setdefault(other + part.removeprefix(name), tensor)
    return result


SUFFIXES = ("", "_packed", "_scale", "_zero_point", "_shape")
"""What the parts of a quantized weight add to its name."""
