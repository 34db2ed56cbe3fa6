"""A call of `quantize`: its data, where it computes, and its checks."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _native
from .exceptions import ConfigurationError, InputError
from .options import Options, is_int, one_of, yes_or_no

ON_FAILURE = ("error", "warn", "ignore")


@dataclass
class Run:
    """All arguments of `quantize` that are no Options."""

    calibration_data: Any = None
    show_progress: bool = False
    calibration: Any = None
    num_calibration_samples: int = 150
    device: str = "auto"
    output: str | os.PathLike[str] | None = None
    force: bool = False
    resume: bool = False
    verify: bool = False
    report: str | os.PathLike[str] | None = None
    max_memory: int | str | None = None
    max_shard_size: int | str | None = None
    sample_input: Any = None
    run_validation: bool | None = None
    on_failure: str = "error"
    accuracy_warning: str = "warn"
    sqnr_warning_threshold: float | None = None
    sqnr_error_threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("show_progress", "force", "resume", "verify"):
            yes_or_no(name, getattr(self, name))
        if self.run_validation is not None:
            yes_or_no("run_validation", self.run_validation)
        one_of("on_failure", self.on_failure, ON_FAILURE)
        thresholds(self.accuracy_warning, self.sqnr_warning_threshold, self.sqnr_error_threshold)
        if not is_int(self.num_calibration_samples) or self.num_calibration_samples < 1:
            raise ConfigurationError(f"num_calibration_samples={self.num_calibration_samples!r}",
                                     "a whole number from 1 on")
        if not isinstance(self.device, str) or not self.device:
            raise ConfigurationError(f"device={self.device!r}",
                                     "'auto', 'cpu', 'gpu', 'gpu:N', a part of an adapter's name, or 'gpu:0,gpu:1'")
        for name in ("output", "report"):
            path = getattr(self, name)
            if path is not None and not isinstance(path, (str, os.PathLike)):
                raise ConfigurationError(f"{name}={path!r}", "a path")
        for name in ("max_memory", "max_shard_size"):
            size = getattr(self, name)
            if size is not None and not isinstance(size, str) and not is_int(size):
                raise ConfigurationError(f"{name}={size!r}", "a number of bytes, or a text such as '5GB' or '512MiB'")
        if self.calibration is not None and not isinstance(self.calibration, (str, os.PathLike)):
            if not hasattr(self.calibration, "to_json"):
                raise ConfigurationError(f"calibration={self.calibration!r}", "what calibrate() returns, or its file")

    def refuse_contradictions(self, options: Options, path: bool, module: bool) -> None:
        """ConfigurationError: arguments that do not go together, or not with this form of model."""
        static = options.bits == 8 and not options.dynamic and not options.weight_only
        if options.weight_only and self.output is None:
            raise ConfigurationError(f"format={options.format!r} is a layout of files",
                                     "the path of a checkpoint with output=…, or convert_model() on a saved result")
        data = self.calibration_data is not None
        if self.output is not None and not path:
            raise ConfigurationError("output= is for paths", "result.save(path)")
        for name in ("resume", "verify", "report", "max_memory", "max_shard_size"):
            given = getattr(self, name)
            if given is not None and given is not False and self.output is None:
                raise ConfigurationError(f"{name}= is for runs from file to file", "the path of a checkpoint with output=…")
        if self.report is not None and hasattr(self.calibration, "to_json"):
            raise ConfigurationError("report= with statistics that are in no file, so that nobody could run it again",
                                     "calibration.save(FILE) and calibration=FILE")
        if not module and (data or self.sample_input is not None):
            what = "calibration_data" if data else "sample_input"
            raise ConfigurationError(f"{what} with a file or state dict, which cannot run",
                                     "pass a module, calibration=FILE, or dynamic=True")
        if static and not data and self.calibration is None:
            raise ConfigurationError(
                "static quantization needs data that ran through the model, and no calibration_data was given",
                "pass calibration_data=[…] with a module, calibration=FILE, or dynamic=True",
            )
        if self.calibration is not None and not static:
            raise ConfigurationError("calibration= is for static inputs", "bits=8 with dynamic=False")

    def arguments(self) -> list[str]:
        """Where and how, as the command line says it; `output` aside."""
        said = [f"--{name}" for name in ("force", "resume", "verify") if getattr(self, name)]
        said += [f"--report={Path(self.report).expanduser()}"] if self.report is not None else []
        sizes = {"--max-memory": self.max_memory, "--max-shard-size": self.max_shard_size}
        said += [f"{option}={size}" for option, size in sizes.items() if size is not None]
        return [f"--device={self.device}", *said]

    def check_device(self) -> None:
        """ConfigurationError: there is no such device. Costs a moment, so only for runs that would lose more."""
        if self.device not in ("auto", "cpu"):
            _native.devices(self.device)


def thresholds(accuracy_warning: str, *decibels: float | None) -> None:
    """Refuses what is none."""
    one_of("accuracy_warning", accuracy_warning, ON_FAILURE)
    for value in decibels:
        # NaN is not itself
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value != value):
            raise ConfigurationError(f"an SQNR threshold of {value!r}", "a number of dB")


def existing(path: str | os.PathLike[str]) -> str:
    """The path of a model, `~` expanded. InputError: there is nothing."""
    if path == "":
        raise InputError("the path of a model is empty", "the path of a checkpoint, or of a directory with one")
    found = Path(path).expanduser()
    if not found.exists():
        raise InputError(f"{found}: no such file or directory", "the path of a checkpoint, or of a directory with one")
    return str(found)


@contextlib.contextmanager
def statistics(calibration: Any) -> Iterator[list[str]]:
    """`--calibration FILE` for a file, or for statistics in memory by way of a temporary one."""
    if calibration is None:
        yield []
    elif isinstance(calibration, (str, os.PathLike)):
        yield ["--calibration", existing(calibration)]
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "statistics.json"
            file.write_text(calibration.to_json(), encoding="utf-8")
            yield ["--calibration", str(file)]
