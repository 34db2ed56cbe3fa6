"""State dicts and files, which have no modules: names and shapes tell what their tensors are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _native
from .exceptions import ConfigurationError, InputError
from .options import Options, formats, is_standard, layer_type
from .progress import Progress
from .results import QuantizationResult, info_of
from .run import Run, existing, statistics

if TYPE_CHECKING:
    import torch


def quantize_file(model: str, options: Options, run: Run) -> QuantizationResult:
    """Streams a file or directory into another. Needs no torch."""
    with statistics(run.calibration) as more:
        progress = Progress("quantize", 1, run.show_progress)

        arguments = [*run.arguments(), *options.arguments(_types(options)), *more]
        report = _write("quantize", model, run.output or "", arguments, progress)
    return QuantizationResult(None, info_of(options, report), path=Path(report["output"]))


def convert_model(
    model: str | os.PathLike[str], output: str | os.PathLike[str], format: str | Iterable[str], *, force: bool = False,
    resume: bool = False, verify: bool = False, report: str | os.PathLike[str] | None = None, device: str = "auto",
    show_progress: bool = False,
) -> Path:
    """Writes the quantized layers of a file or directory in another layout ("compressed-tensors", "gptq", "awq"; of
    several, each in a folder of `output`), with the same codes and scales. Returns the output's path. `resume`, `verify`
    and `report` are those of `quantize`.

    QuantizationError: the layout cannot hold these layers as they are. InputError: the file is damaged.
    """
    run = Run(None, show_progress, device=device, output=output, force=force, resume=resume, verify=verify,
              report=report)
    arguments = [*run.arguments(), *(f"--format={name}" for name in formats(format))]
    progress = Progress("convert", 1, show_progress)
    return Path(_write("convert", existing(model), output, arguments, progress)["output"])


def _write(command: str, model: str, output: str | os.PathLike[str], arguments: list[str], progress: Progress) -> Any:
    """Runs a command of the engine from file to file; its report."""

    def advance(done: int, total: int) -> None:
        progress.total = max(total, 1)
        progress(done)

    places = [f"--model={model}", f"--output={Path(output).expanduser()}"]
    report = json.loads(_native.write([command, *places, *arguments], advance))
    progress.finish()
    return report


def quantize_checkpoint(model: str | Mapping[str, Any], options: Options, run: Run) -> QuantizationResult:
    """A path or a state dict into a state dict."""
    from . import _tensors

    types = _types(options)
    if isinstance(model, str):
        given: Any = model
        tied: Mapping[str, str] = {}
    else:
        _check_state_dict(model)
        given, tied = _tensors.source("state dict", model), _tensors.tied_names(model)
    with statistics(run.calibration) as more:
        plan = _native.quantize_model(given, options.arguments(types, tied) + more)
    outputs, report = compute(plan, run)
    tensors = _tensors.with_tied(outputs, plan.tied)
    if not isinstance(model, str):
        origin = {name: tensor.device for name, tensor in model.items()}
        tensors = {n: t.to(_origin(n, origin)) for n, t in tensors.items()}
    info = info_of(options, report, plan.tied)
    info.warnings += _tensors.not_finite({name: outputs[name] for name in info.skip_reasons if name in outputs})
    return QuantizationResult(tensors, info, metadata=plan.metadata, order=list(outputs))


def compute(plan: _native.Plan, run: Run) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a plan, and the engine's report."""
    from . import _tensors

    progress = Progress("quantize", plan.work, run.show_progress)
    outputs, report = _tensors.run(plan, run.device, progress if run.show_progress else None)
    progress.finish()
    return outputs, report


def _types(options: Options) -> tuple[str, ...]:
    """Layer types for tensors without modules, less those that are skipped."""
    for kind in (*options.skip_types, *(options.layer_types or ())):
        if not is_standard(kind):
            raise ConfigurationError(f"{kind!r}: files and state dicts tell no classes of one's own",
                                     "skip=[…] and layer_names=[…], or pass the module")
    skipped = {layer_type(kind) for kind in options.skip_types}
    types = tuple(kind for kind in options.types() if kind not in skipped)
    if not types:
        raise ConfigurationError("skip_types leaves no layer type", "layer_types=[…] adds others to linear layers")
    return types


def _check_state_dict(state: Mapping[Any, Any]) -> None:
    import torch

    wrong = [k for k, v in state.items() if not isinstance(k, str) or not isinstance(v, torch.Tensor)]
    if wrong or not state:
        what = f"{wrong[0]!r} is no name of a tensor" if wrong else "it is empty"
        raise InputError(f"the dict is no state dict: {what}", "pass model.state_dict()")


def _origin(name: str, devices: Mapping[str, Any]) -> Any:
    """The device that a tensor came from, or that its weight did."""
    from ._tensors import SUFFIXES

    stems = (name.removesuffix(suffix) for suffix in SUFFIXES)
    return next((devices[stem] for stem in stems if stem in devices), "cpu")
