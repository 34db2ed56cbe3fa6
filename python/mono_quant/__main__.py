"""The `monoquant` command, also `mq`: the engine's, and `calibrate`, which runs a model and so needs torch."""

from __future__ import annotations

import sys

from . import _native


def main() -> int:
    """Runs the command line of this process; returns the exit code."""
    if sys.argv[1:2] == ["calibrate"]:
        from .programs import main as calibrate

        return calibrate(sys.argv[2:])
    return _native.main(["monoquant", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
