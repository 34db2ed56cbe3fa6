"""Files: save and load quantized models, without ever running a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import _native, _tensors, models
from .exceptions import ConfigurationError, InputError
from .results import QuantizationResult
from .run import existing


ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def save_model(
    model: Any, path: str | Path, *, metadata: Mapping[str, str] | None = None, overwrite: bool = True
) -> Path:
    """Writes a quantized model: codes, scales, zero points, and the recipe (bits, scheme, group size, observer).

    model: a `QuantizationResult`, a module, or a dict of tensors.
    path: `.safetensors`, or `.pt`, `.pth`, `.bin`, `.ckpt`, which `torch.load(weights_only=True)` opens. The file
        appears in one step, or not at all; tied tensors are written once.
    metadata: strings to keep with it, in the header or as attributes of the state dict.

    ConfigurationError: the name says no format. QuantizationError: the file exists and `overwrite` is False.
    """
    target = Path(path).expanduser()
    if target.suffix not in ENDINGS:
        raise ConfigurationError(f"{target}: the name must say the format", f"a name that ends in {', '.join(ENDINGS)}")
    kept: dict[str, str] = {}
    order: list[str] = []
    if isinstance(model, QuantizationResult):
        if model.model is None:
            raise ConfigurationError(f"the result was written to {model.path} already", "copy that file")
        kept, order, model = dict(model.metadata), model.order, model.model
    model = models.unwrapped(model)
    if isinstance(model, nn.Module):
        kept = kept or dict(model.__dict__.get("_mono_quant", {}))
        tensors: Mapping[str, Any] = models.state_of(model)
    elif isinstance(model, Mapping):
        tensors = model
    else:
        raise InputError(f"a {type(model).__name__} cannot be saved", "pass a result, a module or a state dict")
    wrong = [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]
    if wrong:
        raise InputError(f"{wrong[0]!r} is no tensor", "pass a dict of names and tensors")
    ordered = {name: tensors[name] for name in dict.fromkeys([*order, *tensors]) if name in tensors}
    weights = _weight_ties(_tensors.tied_names(ordered))
    kept = {"format": "pt"} | kept | {k: str(v) for k, v in (metadata or {}).items()}
    name, entries, _, config, read = _tensors.source("the model in memory", ordered)
    _native.save((name, entries, weights, config, read), str(target), kept, overwrite)
    return target


def _weight_ties(tied: Mapping[str, str]) -> dict[str, str]:
    """Ties of weights from those of their parts: `a.weight_packed` and `b.weight_packed` tie `a.weight` and `b.weight`."""
    found = {}
    for other, name in tied.items():
        suffix = next(s for s in sorted(_tensors.SUFFIXES, key=len, reverse=True) if other.endswith(s) and name.endswith(s))
        found[other.removesuffix(suffix)] = name.removesuffix(suffix)
    return found


def load_model(path: str | Path, model: nn.Module | None = None, *, device: str | None = None) -> Any:
    """Reads a file or directory; nothing in it is ever run.

    model: a module to be filled: returns a copy of it with quantized modules in place of those whose codes the file has,
        ready to run. Without it: the tensors by name, as they are.
    device: torch's name of where the tensors go; by default where the module's are, or the CPU.

    InputError: the file is damaged, or its tensors do not fit the module.
    """
    items = json.loads(_native.inspect_model(existing(path)))["items"] if model is not None else []
    words = any(item.get("scheme", {}).get("layout", "compressed-tensors") != "compressed-tensors" for item in items)
    # modules hold codes as compressed-tensors lays them out
    plan = _native.convert(existing(path), ["compressed-tensors"]) if words else _native.load(existing(path))
    tensors, _ = _tensors.run(plan, "cpu")
    state = _tensors.with_tied(tensors, plan.tied)
    if model is None:
        return state if device is None else {name: tensor.to(device) for name, tensor in state.items()}
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"model={model!r}", "an nn.Module to be filled, or None")
    filled = _filled(path, models.unwrapped(model), state, plan)
    return filled if device is None else filled.to(device)


def _filled(path: str | Path, model: nn.Module, state: dict[str, Tensor], plan: Any) -> nn.Module:
    schemes = {item["name"]: item["scheme"] for item in json.loads(_native.inspect_model(existing(path)))["items"]
               if item.get("scheme")}
    layers, _ = models.layers_of(model)
    # files of torch tie every part of a weight, safetensors weights
    ties = plan.tied | _weight_ties(plan.tied)
    tied = {other: name for other, name in ties.items() if name in schemes or name in state}
    rows = []
    for layer in layers:
        for weight in layer.weights:
            name = tied.get(layer.key(weight), layer.key(weight))
            if name in schemes:
                scheme = dict(schemes[name])
                static, dynamic = layer.key("input_scale") in state, scheme["activations"] != "float"
                scheme["activations"] = {"static-tensor": {}} if static else ("dynamic-token" if dynamic else "float")
                rows.append({"name": name, "scheme": scheme})
    try:
        filled = models.build(model, layers, state, tied, rows)
        others = {name: value for name, value in filled.state_dict().items() if not isinstance(value, Tensor)}
        filled.load_state_dict(state | others, strict=True)
    except (RuntimeError, ValueError) as e:
        raise InputError(f"{path} does not fit {type(model).__name__}: {e}", "build the module that was quantized") from e
    left = [name for name, t in [*filled.named_parameters(), *filled.named_buffers()] if t.is_meta]
    if left:
        raise InputError(f"{left[0]} is on the device meta, and not in {path}", "a model whose other tensors hold values")
    if _cast_to(plan.input_metadata) == "float16":
        models.half_rest(filled)
    models.remember(filled, plan.input_metadata)
    return filled


def _cast_to(metadata: Mapping[str, str]) -> str | None:
    """The dtype of a file that was cast and not quantized."""
    method = json.loads(metadata.get("monoquant", "{}")).get("recipe", {}).get("method", {})
    return method.get("cast") if isinstance(method, dict) else None


def dequantize_model(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Floats again: a copy of a module with standard modules, or a dict of float tensors from a state dict, a result or
    the path of a file."""
    metadata = None
    if isinstance(model, QuantizationResult):
        metadata = model.metadata
        model = model.model if model.model is not None else model.path
    model = models.unwrapped(model)
    if isinstance(model, nn.Module):
        return models.replaced(model, lambda module: module.to_float()).to(dtype)
    given = _tensors.source("state dict", model, metadata=metadata) if isinstance(model, Mapping) else existing(model)
    items = json.loads(_native.inspect_model(given))["items"]
    cast = not any(item.get("scheme") for item in items) and any(item["kind"] in ("F16", "BF16") for item in items)
    plan = _native.load(given) if cast else _native.dequantize(given, str(dtype).removeprefix("torch."))
    tensors, _ = _tensors.run(plan, "cpu")
    if cast:
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    return _tensors.with_tied(tensors, plan.tied)


def revert_to_standard_modules(model: nn.Module) -> nn.Module:
    """A copy of a module in which standard modules take the place of quantized ones, in the dtype that these compute in,
    so that it fits the rest of the model; `dequantize_model` makes all of it FP32."""
    return models.replaced(models.unwrapped(model), lambda module: module.to_float().to(module.compute_dtype))
