"""Modules of a model: which can be quantized, and the copy of the model in which they are."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from . import _tensors
from .exceptions import InputError, QuantizationError
from .modules import QuantizedModule, quantized_class
from .options import escaped, layer_type

FLOAT_TYPES = ("linear", "conv1d", "conv2d", "convtranspose", "lstm", "gru")
"""Layer types that are quantized by default in models of one's own; embeddings are not."""


@dataclass
class Layer:
    """A module that a quantized one can replace."""

    name: str
    module: nn.Module
    kind: str
    weights: list[str]

    def key(self, part: str) -> str:
        """The name in the state dict."""
        return f"{self.name}.{part}" if self.name else part


def candidates(model: nn.Module) -> tuple[list[Layer], dict[str, str]]:
    """Modules that could be quantized, and, of those that look so but cannot, why not."""
    found, unfit = [], {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedModule):
            raise QuantizationError(f"{name or 'the model'} is quantized already; dequantize_model gives floats back")
        kind = quantized_class(module)
        if kind is None:
            if any(isinstance(module, base) for base in (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.Embedding)):
                unfit[name] = f"{type(module).__name__} computes in a way of its own"
            continue
        weights = [n for n, p in module._parameters.items() if n.startswith("weight") and p is not None]
        expected = [n for n, p in module.named_parameters(recurse=False) if n.startswith("weight")]
        if not weights or weights != expected or hasattr(module, "parametrizations"):
            unfit[name] = "its weight is computed from other parameters (parametrized)"
            continue
        found.append(Layer(name, module, layer_type(kind.float_class), weights))
    return found, unfit


def default_types(model: nn.Module) -> tuple[str, ...]:
    """Linear layers in models of transformers, as their loaders expect; else all but embeddings."""
    return ("linear",) if hasattr(getattr(model, "config", None), "model_type") else FLOAT_TYPES


def config_of(model: nn.Module) -> dict[str, Any] | None:
    """The config of a model of transformers."""
    config = getattr(model, "config", None)
    return config.to_dict() if hasattr(config, "model_type") and hasattr(config, "to_dict") else None


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state dict; other entries (`_extra_state`) are no weights."""
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    if not state:
        raise InputError(f"{type(model).__name__} has no parameters; pass a model with weights")
    return state


def parted(layers: list[Layer], types: tuple[str, ...], tied: Mapping[str, str]) -> dict[str, str]:
    """Weights that share memory with one of another kind, and so must stay: name → the other."""
    kinds = {layer.key(w): layer.kind for layer in layers for w in layer.weights}
    apart = {}
    for other, name in tied.items():
        if kinds.get(name) in types and kinds.get(other) != kinds[name]:
            apart[name] = other
    return apart


def exactly(name: str) -> str:
    """A regular expression for one tensor's name."""
    return f"^{escaped(name)}$"


def build(
    model: nn.Module, layers: list[Layer], outputs: Mapping[str, Tensor], tied: Mapping[str, str], rows: list[dict]
) -> nn.Module:
    """A copy of the model that holds `outputs`: quantized modules where the rows say so.

    The model itself is only read. Its parameters are not copied on the way; everything else is, as by deepcopy.
    """
    schemes = {row["name"]: row["scheme"] for row in rows if row.get("scheme")}
    memo: dict[int, Any] = {}
    for layer in layers:
        names = {weight: tied.get(layer.key(weight), layer.key(weight)) for weight in layer.weights}
        coded = {weight: schemes[name] for weight, name in names.items() if name in schemes}
        if coded:
            memo[id(layer.module)] = _quantized(layer, coded, names, outputs)
    for name, tensor, parameter in _tensors_of(model, set(memo)):
        made = outputs.get(tied.get(name, name))
        if made is None or id(tensor) in memo:
            continue
        made = made.to(tensor.device)
        memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if parameter else made
    try:
        return copy.deepcopy(model, memo)
    except Exception as e:
        raise InputError(f"{type(model).__name__} cannot be copied: {e}", "make copy.deepcopy(model) work") from e


def _quantized(layer: Layer, coded: dict[str, dict], names: dict[str, str], outputs: Mapping[str, Tensor]) -> nn.Module:
    cls = quantized_class(layer.module)
    assert cls is not None
    parts, device = {}, next(layer.module.parameters()).device
    for weight, name in names.items():
        if weight in coded:
            found = {s: outputs[name + s] for s in _tensors.SUFFIXES if name + s in outputs}
            parts.update({weight + suffix: tensor.to(device) for suffix, tensor in found.items()})
    inputs = {_inputs(scheme) for scheme in coded.values()}.pop() if cls.takes_inputs else None
    if inputs == "static":
        for part in ("input_scale", "input_zero_point"):
            if layer.key(part) in outputs:
                parts[part] = outputs[layer.key(part)].to(device)
    bits = {weight: scheme["bits"] for weight, scheme in coded.items()}
    return cls.from_parts(layer.module, parts, bits=bits, inputs=inputs)


def _inputs(scheme: dict) -> str | None:
    activations = scheme["activations"]
    if isinstance(activations, dict):
        return "static"
    return "dynamic" if activations == "dynamic-token" else None


def _tensors_of(model: nn.Module, replaced: set[int]) -> Iterator[tuple[str, Tensor, bool]]:
    """Parameters and persistent buffers outside of replaced modules, with whether they are parameters."""
    for prefix, module in model.named_modules():
        if id(module) in replaced:
            continue
        for name, tensor in module._parameters.items():
            if tensor is not None:
                yield (f"{prefix}.{name}" if prefix else name), tensor, True
        for name, tensor in module._buffers.items():
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), tensor, False


def replaced(model: nn.Module, make: Any) -> nn.Module:
    """A copy of the model in which `make(module)` takes the place of every quantized module."""
    found = {id(m): make(m) for m in model.modules() if isinstance(m, QuantizedModule)}
    return copy.deepcopy(model, found) if found else copy.deepcopy(model)


def half_rest(model: nn.Module) -> None:
    """Casts float buffers that are not in the state dict to half, as `.half()` would."""
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.half()


def remember(model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Keeps the recipe with the model, for files that are saved from it later."""
    model.__dict__["_mono_quant"] = dict(metadata)
