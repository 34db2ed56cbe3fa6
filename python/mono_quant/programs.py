"""`monoquant calibrate`: runs a program of torch.export, or a TorchScript file, and records its layers' inputs.

torch is imported only when it is needed, so that its absence can be said in a sentence.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .exceptions import ConfigurationError, InputError, MonoQuantError

OBSERVERS = ("histogram", "minmax", "moving_average", "percentile")


def main(argv: Sequence[str]) -> int:
    """Runs the command with arguments. Returns the exit code: 0 done, 1 failed, 2 wrong usage or refused input."""
    try:
        options = _parser().parse_args(list(argv))
    except SystemExit as e:
        return int(e.code or 0)
    try:
        import torch  # noqa: F401
    except ImportError as e:
        missing = isinstance(e, ModuleNotFoundError) and e.name == "torch"
        why = "calibrate runs the model and needs torch: pip install torch"
        return _fail(why if missing else f"torch cannot be imported: {e}", 1)
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torch.export logs what the reader of an error message cannot use
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _run(options)
    except MonoQuantError as e:
        return _fail(str(e), 2)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", 1)
    except Exception as e:
        return _fail(f"{type(e).__name__}: {e}", 1)
    finally:
        logging.disable(level)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {message}\n\n{self.format_usage()}\nFor more information, try '--help'.", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="monoquant calibrate",
        description="Run a program on samples and record statistics of its layers' inputs, for monoquant quantize "
        "--calibration. Needs torch. Programs are code: run only those that you trust.",
    )
    add = parser.add_argument
    add("-p", "--program", required=True, type=Path, metavar="FILE",
        help="what torch.export.save (.pt2) or TorchScript's save (.pt, .ts) wrote")
    add("--data", required=True, type=Path, metavar="SAMPLES.pt",
        help="what torch.save wrote: a tensor, or a list of tensors, tuples or dicts, each a batch")
    add("-o", "--output", type=Path, default=Path("statistics.json"), metavar="FILE.json",
        help="where the statistics go [default: statistics.json]")
    add("--observer", type=lambda name: name.replace("-", "_"), choices=OBSERVERS,
        help="how ranges are found [default: histogram]")
    add("--percentile", type=float, metavar="P",
        help="percent of the values that the percentile observer keeps [default: 99.99]")
    add("-n", "--samples", type=int, default=150, metavar="N", help="samples to run [default: 150]")
    add("--asymmetric", action="store_true", help="codes with a zero point, for inputs that lie on one side of zero")
    add("-f", "--force", action="store_true", help="replace an existing output")
    add("-q", "--quiet", action="store_true", help="print only warnings and errors")
    return parser


def _run(options: argparse.Namespace) -> int:
    from .calibration import refuse_existing
    from .exported import calibrate_program, load_samples
    from .observers import PercentileObserver, maker

    if options.samples < 1:
        raise ConfigurationError(f"--samples {options.samples}; a whole number from 1 on")
    if options.percentile is not None and options.observer not in (None, "percentile"):
        raise ConfigurationError(f"--percentile is for --observer percentile, not {options.observer}; leave one out")
    observer: Any = options.observer or "histogram"
    if options.percentile is not None:
        observer = PercentileObserver(options.percentile)
    maker(observer)
    output = options.output.expanduser()
    refuse_existing(output, options.force, "--force")
    if not output.parent.is_dir():
        raise ConfigurationError(f"{output}: there is no directory {output.parent}; make it, or choose another path")
    found = calibrate_program(
        options.program, load_samples(options.data), observer=observer, num_calibration_samples=options.samples,
        symmetric=not options.asymmetric, show_progress=not options.quiet,
    )  # fmt: skip
    try:
        found.save(output, force=options.force)
    except InputError as e:  # a full disk, say, which is nothing that was asked wrongly
        return _fail(str(e), 1)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not options.quiet:
        seen = len(found.observers) - len(found.unreached)
        layers, samples = _count(seen, "layer"), _count(found.samples, "sample")
        print(f"{output}: inputs of {layers} from {samples}", file=sys.stderr)
    return 0


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
