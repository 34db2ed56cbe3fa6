"""Modules of a model: which can be quantized, and the copy of the model in which they are."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import _tensors
from .exceptions import InputError, QuantizationError
from .modules import QUANTIZED, QuantizedModule, quantized_class
from .options import Options, is_standard, layer_type

FLOAT_TYPES = ("linear", "conv1d", "conv2d", "convtranspose", "lstm", "gru")
"""Layer types that are quantized by default in models of one's own; embeddings are not."""
_WEIGHT = re.compile(r"weight(_[ih]h_l\d+(_reverse)?|_hr_l\d+(_reverse)?)?")
_PARAMETER = re.compile(rf"{_WEIGHT.pattern}|bias(_[ih]h_l\d+(_reverse)?)?")
_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
          "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks")


@dataclass
class Layer:
    """A module that a quantized one can replace."""

    names: list[str]
    """Under which the model has it, in order."""
    module: nn.Module
    kind: str
    weights: list[str]

    def key(self, part: str) -> str:
        """The name in the state dict, the first where there are several."""
        return joined(self.names[0], part)

    def keys(self, part: str) -> list[str]:
        return [joined(name, part) for name in self.names]


def declared(layers: list[Layer], tied: Mapping[str, str]) -> dict[str, str]:
    """Layer types by weight, as the engine knows them. A linear layer that shares an embedding's weight is told too: it is
    the output head, though no tensor has its name."""
    kinds = {key: layer.kind for layer in layers for weight in layer.weights for key in layer.keys(weight)}
    heads = {other for other, name in tied.items() if kinds.get(other) == "linear" and kinds.get(name) == "embedding"}
    return {name: kind for name, kind in kinds.items() if name not in tied or name in heads}


def joined(module: str, part: str) -> str:
    return f"{module}.{part}" if module else part


def unwrapped(model: Any) -> Any:
    """What torch.compile was given, of what it made; anything else as it is."""
    return getattr(model, "_orig_mod", model) if isinstance(model, nn.Module) else model


def check(model: nn.Module) -> None:
    """InputError: a module that cannot be taken apart, or has no data. QuantizationError: it is quantized."""
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a module of TorchScript cannot be taken apart", "torch.jit.save it, and pass the path")
    for name, module in model.named_modules():
        if isinstance(module, QuantizedModule):
            raise QuantizationError(f"{name or 'the model'} is quantized already; dequantize_model gives floats back")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise InputError(f"{name} is not initialized yet", "run the model once, so that its lazy layers know sizes")


def layers_of(model: nn.Module) -> tuple[list[Layer], dict[str, str]]:
    """Modules that could be quantized, and why other matrices cannot, by tensor."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    found, unfit = [], {}
    for module in model.modules():
        kind = quantized_class(module)
        own = [n for n, p in module._parameters.items() if p is not None]
        # a weight that is no parameter is computed: weight_norm, pruning, parametrize
        whole = own and all(map(_PARAMETER.fullmatch, own)) and not module._buffers and not module._modules
        if kind is not None and whole:
            weights = [n for n in own if _WEIGHT.fullmatch(n)]
            found.append(Layer(names[id(module)], module, layer_type(kind.float_class), weights))
            continue
        reason = _why_unfit(module, kind is not None)
        matrices = [n for n in own if module._parameters[n].dim() > 1]  # type: ignore[union-attr]
        unfit.update({joined(name, n): reason for name in names[id(module)] for n in matrices})
    return found, unfit


def _why_unfit(module: nn.Module, known: bool) -> str:
    name = type(module).__name__
    if isinstance(module, nn.utils.parametrize.ParametrizationList) or known:
        return "the weight is computed from other tensors (parametrized)"
    own = any(isinstance(module, standard) for standard in QUANTIZED)
    return f"{name} computes in a way of its own" if own else f"{name} has no quantized form"


def default_types(model: nn.Module) -> tuple[str, ...]:
    """Linear layers in models of transformers, as their loaders expect; else all but embeddings."""
    return ("linear",) if _of_transformers(model) else FLOAT_TYPES


def _of_transformers(model: nn.Module) -> bool:
    return hasattr(getattr(model, "config", None), "model_type")


def config_of(model: nn.Module) -> dict[str, Any] | None:
    """The config of a model of transformers."""
    config: Any = getattr(model, "config", None)
    return config.to_dict() if _of_transformers(model) and hasattr(config, "to_dict") else None


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state dict; other entries (`_extra_state`) are no weights."""
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    if not state:
        raise InputError(f"{type(model).__name__} has no parameters", "a model with weights")
    return state


def kept_by_type(
    model: nn.Module, layers: list[Layer], state: Iterable[str], options: Options, unused: list[str]
) -> dict[str, str]:
    """Tensors that `layer_types` and `skip_types` leave out, and why. `unused` gets the types that no module has."""
    kinds = {id(layer.module): layer.kind for layer in layers}
    kept: dict[int, str] = {}

    def is_a(module: nn.Module, kind: type | str) -> bool:
        if isinstance(kind, type):
            same = is_standard(kind) and kinds.get(id(module)) == layer_type(kind)
            return same or isinstance(module, kind)
        return kind in (type(module).__name__, kinds.get(id(module)))

    for kind in options.skip_types:
        said = kind if isinstance(kind, str) else kind.__name__
        found = [module for module in model.modules() if is_a(module, kind)]
        if not found:
            unused.append(f"skip_types: the model has no {said}")
        for module in found:
            for inner in module.modules():
                kept.setdefault(id(inner), f"{said} is skipped")
    wanted = options.layer_types or ()
    for layer in layers if wanted else ():
        # a class of one's own means only itself, though it brings its kind along
        if layer.kind in options.types() and not any(is_a(layer.module, kind) for kind in wanted):
            kept.setdefault(id(layer.module), f"{type(layer.module).__name__} is not among layer_types")
    reasons = {name: kept[id(m)] for name, m in model.named_modules(remove_duplicate=False) if id(m) in kept}
    return {name: reasons[name.rpartition(".")[0]] for name in state if name.rpartition(".")[0] in reasons}


def parted(layers: list[Layer], types: tuple[str, ...], tied: Mapping[str, str], static: bool) -> dict[str, str]:
    """Weights that would be quantized, but share memory with something that will not be alike, and so stay: name → why.

    static: whether inputs get stored scales, of which there is one by weight.
    """
    owners = {key: layer for layer in layers for weight in layer.weights for key in layer.keys(weight)}
    apart = {}
    for other, name in tied.items():
        a, b = owners.get(name), owners.get(other)
        if a is None or a.kind not in types:
            continue
        if b is None or a.kind != b.kind:
            apart[name] = f"tied to {other}, of another kind"
        elif static and a is not b:
            apart[name] = f"tied to {other}, whose inputs need a scale of their own"
    return apart


def build(
    model: nn.Module, layers: list[Layer], outputs: Mapping[str, Tensor], tied: Mapping[str, str],
    rows: list[dict[str, Any]],
) -> nn.Module:
    """A copy of the model that holds `outputs`: quantized modules where the rows say so.

    The model itself is only read. Its parameters are not copied on the way; everything else is, as by deepcopy.
    """
    schemes = {row["name"]: row["scheme"] for row in rows if row.get("scheme")}
    memo: dict[int, Any] = {}
    made: list[tuple[nn.Module, nn.Module]] = []
    for layer in layers:
        names = {weight: tied.get(layer.key(weight), layer.key(weight)) for weight in layer.weights}
        coded = {weight: schemes[name] for weight, name in names.items() if name in schemes}
        if coded:
            memo[id(layer.module)] = _quantized(layer, coded, names, outputs)
            made.append((layer.module, memo[id(layer.module)]))
    for name, tensor, parameter in _tensors_of(model, set(memo)):
        found = outputs.get(tied.get(name, name))
        if found is None or id(tensor) in memo:
            continue
        if found.shape != tensor.shape:
            raise ValueError(f"{name} has shape {list(found.shape)}, the module's has {list(tensor.shape)}")
        found = found.to(_home(tensor))
        memo[id(tensor)] = nn.Parameter(found, tensor.requires_grad) if parameter else found
    return _copied(model, memo, made)


def _copied(model: nn.Module, memo: dict[int, Any], replaced: list[tuple[nn.Module, nn.Module]]) -> nn.Module:
    """A deepcopy in which some modules are replaced, which keep their hooks and attributes."""
    for module in model.modules():
        for value in vars(module).values():
            # results of weight_norm and the like, which deepcopy refuses; the next forward makes them anew
            if isinstance(value, Tensor) and not value.is_leaf and id(value) not in memo:
                memo[id(value)] = value.detach().clone()
    try:
        copied: nn.Module = copy.deepcopy(model, memo)
        for old, new in replaced:
            for hooks in _HOOKS:
                vars(new)[hooks] = copy.deepcopy(vars(old)[hooks], memo)
            # what a model has noted at its layer, and looks for there
            noted = {n: v for n, v in vars(old).items() if not n.startswith("_") and not hasattr(new, n)}
            vars(new).update(copy.deepcopy(noted, memo))
    except Exception as e:
        raise InputError(f"{type(model).__name__} cannot be copied: {e}", "make copy.deepcopy(model) work") from e
    return copied


def _home(tensor: Tensor) -> torch.device:
    """Where what takes its place goes: a module on the device meta is filled on the CPU."""
    return torch.device("cpu") if tensor.is_meta else tensor.device


def _quantized(
    layer: Layer, coded: dict[str, dict[str, Any]], names: dict[str, str], outputs: Mapping[str, Tensor]
) -> nn.Module:
    cls = quantized_class(layer.module)
    assert cls is not None
    parts, device = {}, _home(next(layer.module.parameters()))
    for weight, name in names.items():
        if weight in coded:
            found = {s: outputs[name + s] for s in _tensors.SUFFIXES if name + s in outputs}
            parts.update({weight + suffix: tensor.to(device) for suffix, tensor in found.items()})
    for name, parameter in layer.module.named_parameters(recurse=False):
        if parameter.is_meta and name not in coded and layer.key(name) in outputs:
            parts[name] = outputs[layer.key(name)]
    inputs = {_inputs(scheme) for scheme in coded.values()}.pop() if cls.takes_inputs else None
    if inputs == "static":
        for part in ("input_scale", "input_zero_point"):
            if layer.key(part) in outputs:
                parts[part] = outputs[layer.key(part)].to(device)
    bits = {weight: scheme["bits"] for weight, scheme in coded.items()}
    return cls.from_parts(layer.module, parts, bits=bits, inputs=inputs)


def _inputs(scheme: dict[str, Any]) -> str | None:
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


def replaced(model: nn.Module, make: Callable[[QuantizedModule], nn.Module]) -> nn.Module:
    """A copy of the model in which `make(module)` takes the place of every quantized module."""
    made = [(m, make(m)) for m in model.modules() if isinstance(m, QuantizedModule)]
    return _copied(model, {id(old): new for old, new in made}, list(made))


def half_rest(model: nn.Module) -> None:
    """Casts float buffers that are not in the state dict to half, as `.half()` would; not in models of transformers, which
    compute with theirs (positions' frequencies) in float32 whatever the weights are."""
    if _of_transformers(model):
        return
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.half()


def remember(model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Keeps the recipe with the model, for files that are saved from it later."""
    model.__dict__["_mono_quant"] = dict(metadata)
