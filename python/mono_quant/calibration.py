"""Calibration: runs a model on sample data and records which ranges its layers' inputs have, for static scales."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from . import _native
from .batches import Batch, Batches, first_line, tensors
from .exceptions import ConfigurationError, InputError, MonoQuantError
from .modules import quantized_class
from .observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    Observer,
    PercentileObserver,
    _of_native,
    maker,
)
from .progress import Progress

FEW = 10
"""Fewer samples than this are warned about."""


@dataclass
class Calibration:
    """What was seen at the inputs of layers."""

    observers: dict[str, Observer]
    """By module name; of layers that were never reached, they are empty."""
    symmetric: bool = True
    """Whether codes are centred on zero, so that there is no zero point."""
    samples: int = 0
    batches: int = 0
    warnings: list[str] = field(default_factory=list)
    """What is poor about the data, layer by layer."""

    @property
    def unreached(self) -> list[str]:
        """Layers that no input came to."""
        return [name for name, observer in self.observers.items() if not observer.facts["batches"]]

    def to_json(self) -> str:
        """The text of a file for `monoquant quantize --calibration FILE`."""
        natives = {name: observer._native for name, observer in self.observers.items()}
        found = json.loads(_native.calibration_json(self.symmetric, natives))
        found |= {"samples": self.samples, "batches": self.batches, "warnings": self.warnings}
        return json.dumps(found) + "\n"

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Writes the file, whole or not at all. ConfigurationError: it exists already and `force` is not given.
        InputError, with the OSError as its cause: it cannot be written."""
        path = Path(path).expanduser()
        refuse_existing(path, force)
        temporary = path.with_name(f".{path.name[:200]}.monoquant-{secrets.token_hex(4)}")
        try:
            try:
                with open(temporary, "x", encoding="utf-8") as file:
                    file.write(self.to_json())
                    file.flush()
                    os.fsync(file.fileno())
                refuse_existing(path, force)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as e:
            raise InputError(f"{path}: cannot write: {e.strerror}; choose another path") from e

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Calibration:
        """Reads a file that `save` wrote. InputError: it is missing, damaged, or something else."""
        path = Path(path).expanduser()
        symmetric, layers = _native.read_calibration(path)
        more = json.loads(path.read_text(encoding="utf-8"))
        observers = {name: _of_native(native) for name, native in layers.items()}
        samples, batches, warnings = (more.get(name) for name in ("samples", "batches", "warnings"))
        return Calibration(observers, symmetric, samples or 0, batches or 0, list(warnings or []))


def refuse_existing(path: Path, force: bool, how: str = "force=True") -> None:
    """ConfigurationError if this file may not be written."""
    if path.is_dir():
        raise ConfigurationError(f"{path} is a directory; choose another name")
    if not force and os.path.lexists(path):
        raise ConfigurationError(f"{path} exists already; {how} replaces it")


def calibrate(
    model: nn.Module,
    data: Any,
    *,
    observer: str | type[Observer] | Observer = "histogram",
    layers: Iterable[str] | None = None,
    num_calibration_samples: int = 150,
    symmetric: bool = True,
    show_progress: bool = False,
) -> Calibration:
    """Runs `model` in evaluation mode, without gradients, and observes the inputs of its layers.

    data: a tensor (one batch), or an iterable of batches: tensors, tuples of positional inputs, dicts of keyword
        inputs; or a DataLoader. Of (inputs, labels), as many are passed as `forward` takes. Inputs are moved to the
        model's device and floating dtype. Samples are counted along the first dimension of a batch's first tensor.
    observer: minmax, moving_average, histogram or percentile; or a class or an object from mono_quant.observers.
    layers: names of the modules to observe; by default all linear layers and convolutions whose inputs can be
        quantized. A module with several names goes by its first.
    num_calibration_samples: where to stop. A batch that is larger than what is left is cut.

    The model is left as it was: training flags, attributes, buffers, hooks; so are `data` and torch's random state.
    What is poor about the data is in the result's `warnings`.

    ConfigurationError: an argument is not accepted.
    InputError: no data, data of another form, NaN in a layer's input, or an input on which the model raises.
    """
    make = maker(observer)
    check_samples(num_calibration_samples)
    modules = _chosen(model, layers)
    device, dtype = placement(model.parameters(), model.buffers())
    recorder = Recorder({name: make() for name in modules})
    batches = Batches(data, model.forward, device, dtype, num_calibration_samples)
    names = {id(module): name for name, module in model.named_modules()}
    with _ALONE, _as_it_was(model, device), torch.no_grad(), _layer_by_layer(model), contextlib.ExitStack() as hooks:
        for module in model.modules():
            module.training = False  # not eval(), which some models override to do more, such as merging adapters
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(recorder.hook(name), with_kwargs=True)
            hooks.callback(handle.remove)
        progress = Progress("calibrate", num_calibration_samples, show_progress)
        recorder.run(model, batches, progress, lambda error: _place(error, names))
        progress.finish()
    never = {name: _why_unreached(model, name) for name in modules}
    return recorder.result(symmetric, batches, never)


def check_samples(n: Any) -> None:
    """ConfigurationError if this is no number of samples."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ConfigurationError(f"num_calibration_samples={n!r}; a whole number from 1 on")


class Recorder:
    """Observers by layer, and the batch that is running."""

    def __init__(self, observers: dict[str, Observer]) -> None:
        self.observers = observers
        self.batch = Batch(0, 0)

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def observe(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs.get("input", next(tensors(kwargs), None))
            if isinstance(x, Tensor) and x.is_floating_point():
                self.observe(name, x)

        return observe

    def observe(self, name: str, x: Tensor) -> None:
        try:
            # rows of the batch, so that `samples` counts samples, whichever axis of `x` they lie along
            self.observers[name]._take(x, self.batch.rows)
        except InputError as e:
            layer = f"layer {name!r}" if name else "the model"
            raise InputError(f"{self.batch}: the input of {layer}: {e}; leave out this batch, or repair it") from None

    def run(
        self,
        model: Callable[..., Any],
        batches: Batches,
        progress: Callable[[int], None],
        place: Callable[[BaseException], str] = lambda error: "",
        hint: str = "see the cause",
    ) -> None:
        """Calls the model on every batch. InputError: it raises."""
        for batch in batches:
            self.batch = batch
            try:
                model(*batch.args, **batch.kwargs)
            except MonoQuantError:
                raise
            except Exception as e:
                optional = batches.filled(batch)
                more = f"{optional}, or {hint}" if optional else hint
                said = f"{type(e).__name__}: {first_line(e)}"
                raise InputError(f"{batch}: the model raised {said}{place(e)}; {more}", more) from e
            progress(batch.rows)

    def result(self, symmetric: bool, batches: Batches, never: dict[str, str]) -> Calibration:
        """`never`: what to say of layers if they were not reached."""
        found = Calibration(self.observers, symmetric, batches.samples, batches.count, list(batches.dropped))
        if batches.samples < FEW:
            found.warnings.append(f"only {batches.samples} samples were given; 100 or more make ranges that hold")
        unreached = set(found.unreached)
        for name, observer in self.observers.items():
            if name in unreached:
                found.warnings.append(f"{name or 'the model'}: never reached{never.get(name, '')}; it gets no scale")
            else:
                found.warnings += [f"{name or 'the model'}: {what}" for what in _poor(observer)]
        return found


def _poor(observer: Observer) -> Iterator[str]:
    facts = observer.facts
    if facts["infinities"]:
        spoilt = isinstance(observer, (MinMaxObserver, MovingAverageMinMaxObserver))
        then = "no scale can be made of its range" if spoilt else "they were left out"
        yield f"{facts['infinities']} of its {facts['values']} inputs were infinite; {then}"
    if facts["extremes"] and facts["extremes"][0] == facts["extremes"][1]:
        yield f"all its inputs were {facts['extremes'][0]:g}, which says nothing of other data"


def _chosen(model: nn.Module, layers: Iterable[str] | None) -> dict[str, nn.Module]:
    """The modules to observe by their first names. Checks the model too."""
    if not isinstance(model, nn.Module):
        raise InputError(f"{type(model).__name__} is no torch.nn.Module; calibration runs a module")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, UninitializedTensorMixin):
            raise InputError(f"{name} is uninitialized; run the model once before calibration")
        if tensor.is_meta:
            raise InputError(f"{name} is on the device meta and holds no data; load the weights first")
    fit = {name: m for name, m in model.named_modules() if getattr(quantized_class(m), "takes_inputs", False)}
    if layers is None:
        if not fit:
            raise InputError("the model has no linear layer or convolution whose inputs could be quantized; "
                             "programs of torch.export and TorchScript are for `monoquant calibrate --program`")
        return fit
    if isinstance(layers, str):
        raise ConfigurationError(f"layers={layers!r} is one name; give a list of names")
    every = dict(model.named_modules(remove_duplicate=False))
    first = {id(module): name for name, module in model.named_modules()}
    chosen = {}
    for name in layers:
        if name not in every:
            near = ", ".join(difflib.get_close_matches(str(name), fit, 3)) or "see model.named_modules()"
            raise ConfigurationError(f"layers: the model has no module {name!r}; {near}")
        own = first[id(every[name])]
        if own not in fit:
            kind = type(every[name]).__name__
            raise ConfigurationError(
                f"layers: the inputs of {name!r} ({kind}) stay float; linear layers and convolutions are accepted"
            )
        chosen[own] = fit[own]
    if not chosen:
        raise ConfigurationError("layers is empty; leave it out to observe all")
    return {name: module for name, module in fit.items() if name in chosen}


def placement(*groups: Iterable[Tensor]) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and floating dtype that inputs need: of the first tensor, and of the first floating one."""
    device = dtype = None
    for tensor in (t for group in groups for t in group):
        device = tensor.device if device is None else device
        if tensor.is_floating_point():
            return device, tensor.dtype
    return device, dtype


_ALONE = threading.RLock()
"""Held while a model runs: hooks, attributes and switches of torch are changed meanwhile, and put back."""


@contextlib.contextmanager
def _as_it_was(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Puts back what running may change: attributes (`training` among them), buffers, and random state."""
    held = ("_parameters", "_buffers", "_modules")
    saved = [(m, dict(vars(m)), {name: dict(vars(m)[name]) for name in held}) for m in model.modules()]
    values = {id(b): (b, _version(b), b.detach().clone()) for b in model.buffers()}
    accelerator = device is not None and device.type in ("cuda", "xpu")
    devices = [torch.device(device.type, device.index or 0)] if accelerator and device is not None else []
    try:
        with torch.random.fork_rng(devices, device_type=device.type if accelerator and device else "cuda"):
            yield
    finally:
        for module, attributes, contents in saved:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in contents.items():
                attributes[name].clear()
                attributes[name].update(content)
        with torch.no_grad():
            for buffer, version, value in values.values():
                if _version(buffer) != version:
                    buffer.copy_(value)


def _version(tensor: Tensor) -> int:
    """Counts writes into a tensor; 0 for those that do not count."""
    return 0 if tensor.is_inference() else tensor._version


@contextlib.contextmanager
def _layer_by_layer(model: nn.Module) -> Iterator[None]:
    """Has the model call all its layers: compiled code does not see hooks that came later, and torch's transformers
    have fused kernels, and an encoder then gives its layers nested tensors, which they refuse if there are hooks."""
    compiled = any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules())
    stance = getattr(torch.compiler, "set_stance", None)  # torch 2.6
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with stance("force_eager") if compiled and stance is not None else contextlib.nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _place(error: BaseException, names: dict[int, str]) -> str:
    """In which module of the model an exception began, by the frames it went through."""
    found, traceback = "", error.__traceback__
    while traceback is not None:
        found = names.get(id(traceback.tb_frame.f_locals.get("self")), found)
        traceback = traceback.tb_next
    return f" in layer {found!r}" if found else ""


def _why_unreached(model: nn.Module, name: str) -> str:
    parent = model.get_submodule(name.rpartition(".")[0]) if name else model
    if isinstance(parent, nn.MultiheadAttention):
        return " (nn.MultiheadAttention uses its weight without calling it)"
    return " by the data"


def run_on(model: nn.Module, inputs: Any) -> Any:
    """Calls the model with one batch, in any form that calibration data have, as calibration would; the model and torch's
    random state are left as they were."""
    device, dtype = placement(model.parameters(), model.buffers())
    (batch,) = Batches([inputs], model.forward, device, dtype, 1, cut=False)
    with _ALONE, _as_it_was(model, device):
        return model(*batch.args, **batch.kwargs)
