"""Programs of torch.export and TorchScript: loading them, and running them to see their layers' inputs."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .batches import Batches, first_line
from .calibration import Calibration, Recorder, check_samples, placement
from .exceptions import InputError
from .observers import Observer, maker
from .progress import Progress
from .watch import LayerInputs

_ACCEPTED = "accepted: what torch.export.save or TorchScript's save wrote"
_FUSED = ("aten::_transformer_encoder_layer_fwd", "aten::_native_multi_head_attention")
"""Kernels that scripted transformers choose while no gradients are wanted."""


@dataclass
class Program:
    name: str
    call: Callable[..., Any]
    forward: Callable[..., Any]
    """Says which inputs are taken."""
    state: dict[str, Tensor]
    """The very tensors that it runs on."""
    script: bool
    fixed: bool = False
    """Whether it takes batches of one size only."""
    hint: str = "the samples must be what the program takes"


def load_program(path: Path) -> Program:
    """Loads a program, on the CPU where it was saved on a GPU that is not here. InputError: it is none."""
    names = _entries(path)
    script = any(name.endswith("/constants.pkl") for name in names)
    if not script and any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names):
        raise InputError(f"{path} holds a checkpoint, not a program; torch.export.save writes programs")
    try:
        return _script(path) if script else _exported(path)
    except Exception as e:
        said = f"{type(e).__name__}: {first_line(e)}"
        raise InputError(f"{path}: torch {torch.__version__} cannot load it as a program: {said}; {_ACCEPTED}") from e


def _entries(path: Path) -> list[str]:
    if path.is_dir():
        raise InputError(f"{path} is a directory; {_ACCEPTED}")
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:
        raise InputError(f"{path} is no program; {_ACCEPTED}") from None
    except OSError as e:
        raise InputError(f"{path}: {(e.strerror or str(e)).lower()}; {_ACCEPTED}") from e


def _script(path: Path) -> Program:
    device = None if torch.cuda.is_available() else "cpu"
    module = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    return Program(str(path), module, module.forward, dict(module.state_dict()), script=True)


def _exported(path: Path) -> Program:
    program = torch.export.load(str(path))
    module = program.module()
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in program.graph_signature.user_inputs]
    shapes = [str(list(n.meta["val"].shape)) for n in nodes if isinstance(n.meta.get("val"), Tensor)]
    fixed = not program.range_constraints
    hint = f"the program takes {', '.join(shapes)}"
    return Program(str(path), module, module.forward, dict(module.state_dict()), script=False, fixed=fixed, hint=hint)


def load_samples(path: Path) -> Any:
    """Tensors, or tuples, lists and dicts of them, that torch.save wrote. InputError: something else."""
    path = path.expanduser()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as e:
        raise InputError(f"{path}: {(e.strerror or str(e)).lower()}; torch.save writes samples") from e
    except Exception as e:  # torch's own words advise to load what may be harmful
        raise InputError(
            f"{path} holds no samples, or more than weights_only=True reads; torch.save a tensor, or a list of "
            "tensors, tuples or dicts"
        ) from e


def calibrate_program(
    path: str | Path,
    data: Any,
    *,
    observer: str | type[Observer] | Observer = "histogram",
    num_calibration_samples: int = 150,
    symmetric: bool = True,
    show_progress: bool = False,
) -> Calibration:
    """As `calibrate`, for a file of torch.export or TorchScript. Layers go by the names of the program's state dict.

    A program that was exported for one batch size gets whole batches only.
    InputError: also if the file is no program, or multiplies with no weight of its state dict.
    """
    make = maker(observer)
    check_samples(num_calibration_samples)
    program = load_program(Path(path).expanduser())
    if not isinstance(data, (Tensor, Mapping)) and isinstance(data, Iterator):
        data = list(data)  # it may be gone through twice
    recorder, batches, watch = _run(program, data, make, num_calibration_samples, False, show_progress)
    if program.script and _chose_fused(recorder, watch):
        # With gradients on, a scripted transformer calls one operator a layer. If that fails, the first run stands.
        with contextlib.suppress(InputError):
            recorder, batches, watch = _run(program, data, make, num_calibration_samples, True, show_progress)
    return _result(program, recorder, batches, watch, make, symmetric)


def _chose_fused(recorder: Recorder, watch: LayerInputs) -> bool:
    return any(name not in recorder.observers and kernel in _FUSED for name, kernel in watch.others.items())


def _run(
    program: Program, data: Any, make: Callable[[], Observer], limit: int, gradients: bool, show_progress: bool
) -> tuple[Recorder, Batches, LayerInputs]:
    recorder = Recorder({})

    def observe(names: list[str], x: Tensor) -> None:
        if names[0] not in recorder.observers:
            observer = make()
            recorder.observers.update(dict.fromkeys(names, observer))  # tied weights share what was seen
        recorder.observe(names[0], x)

    watch = LayerInputs(program.state, observe)

    def call(*args: Any, **kwargs: Any) -> None:
        watch.error = None
        try:
            with watch:
                program.call(*args, **kwargs)
        except Exception as e:
            raise watch.error or e

    device, dtype = placement(program.state.values())
    batches = Batches(data, program.forward, device, dtype, limit, cut=not program.fixed)
    progress = Progress("calibrate", limit, show_progress)
    # TorchScript's optimizer would replace operators after the first calls
    plain = (
        torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
        if program.script
        else contextlib.nullcontext()
    )
    with torch.set_grad_enabled(gradients), plain:
        recorder.run(call, batches, progress, hint=program.hint)
    progress.finish()
    return recorder, batches, watch


def _result(
    program: Program,
    recorder: Recorder,
    batches: Batches,
    watch: LayerInputs,
    make: Callable[[], Observer],
    symmetric: bool,
) -> Calibration:
    if not recorder.observers:
        kernels = ", ".join(sorted(set(watch.others.values())))
        why = f"its weights go into {kernels}" if kernels else "it has no such layer, or was frozen"
        raise InputError(
            f"{program.name}: no linear layer or convolution is seen that has a weight of its state dict: {why}; save "
            "it by torch.export, unfrozen and without autocast"
        )
    seen, never = {}, {}
    for name in watch.layers:
        kernel = watch.others.get(name)
        if name in recorder.observers:
            seen[name] = recorder.observers[name]
        elif name not in watch.embeddings and not (kernel and "norm" in kernel):
            seen[name] = make()
            never[name] = f" (its weight goes into {kernel}, which is not looked into)" if kernel else " by the data"
    recorder.observers = seen
    found = recorder.result(symmetric, batches, never)
    if watch.training:
        found.warnings.append(
            f"the program was saved in training mode ({', '.join(watch.training)}), which changes what layers see; "
            "save it after model.eval()"
        )
    return found
