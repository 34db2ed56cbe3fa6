"""The package's types: the stub of the engine's module is what is there, and everything else is typed strictly."""

import os
import subprocess
import sys

from helpers import REPOSITORY

PACKAGE = REPOSITORY / "python" / "mono_quant"


def check(*arguments):
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MYPYPATH": str(PACKAGE.parent)})
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stub_of_the_engine_is_complete(tmp_path):
    (tmp_path / "mypy.ini").write_text(f"[mypy]\ncache_dir = {tmp_path}\n")
    check("mypy.stubtest", "mono_quant._native", "--mypy-config-file", tmp_path / "mypy.ini")


def test_the_package_is_typed_strictly(tmp_path):
    assert (PACKAGE / "py.typed").exists()
    check("mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", PACKAGE)
