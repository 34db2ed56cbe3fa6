"""torch's tensors for the engine, and the engine's results as tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import _native
from .exceptions import InputError

InMemory = tuple[str, list[tuple[Any, ...]], dict[str, str], str | None, dict[str, str]]
Source = str | InMemory
"""A path; or a name for messages, tensors, other names of them, config.json and metadata."""


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
    if not _in_memory(tensor):
        raise InputError(f"{name}: a tensor without memory of its own (freed, sharded, fake, or inside a transform of "
                         "torch.func)", "tensors that hold their values")
    return tensor.resolve_conj().resolve_neg() if tensor.is_conj() or tensor.is_neg() else tensor


def _in_memory(tensor: Tensor) -> bool:
    """Whether all elements lie in the tensor's storage, as the engine reads them from there."""
    try:
        if not tensor.numel():
            return True
        last = tensor.storage_offset() + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride()))
        whole = tensor.untyped_storage().nbytes() >= (last + 1) * tensor.element_size()
        return whole and not isinstance(tensor, FakeTensor) and tensor.data_ptr() != 0
    except RuntimeError:  # wrappers have neither storage nor address
        return False


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
        # what is not in memory is refused when it is read
        if tensor.numel() and tensor.layout == torch.strided and not tensor.is_meta and _in_memory(tensor):
            kept = first.setdefault(_identity(tensor), name)
            if kept != name:
                tied[name] = kept
    return tied


def source(
    what: str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> InMemory:
    """Tensors in memory as the engine takes them: by address, each with what keeps it alive."""
    tied = tied_names(tensors)
    entries = []
    for name, tensor in tensors.items():
        if name in tied:
            continue
        if not isinstance(name, str) or name.encode(errors="ignore").decode() != name:
            raise InputError(f"the name of a tensor is {name!r}", "a text of Unicode characters")
        cpu = plain(name, tensor)
        dtype = str(cpu.dtype).removeprefix("torch.")
        entries.append((name, dtype, list(cpu.shape), list(cpu.stride()), cpu.data_ptr(), cpu))
    text = None if config is None else json.dumps(config, default=str)
    return (what, entries, tied, text, dict(metadata or {}))


def run(
    plan: _native.Plan, device: str, progress: Callable[[int], None] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Computes a plan: its tensors by name, in order, and the engine's report."""
    # another device may be torch's default
    made = {name: torch.empty(shape, dtype=getattr(torch, dtype), device="cpu") for name, dtype, shape in plan.outputs}
    if not all(map(_in_memory, made.values())):
        raise InputError("torch makes tensors without memory now", "to run outside of FakeTensorMode and torch.func")
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
