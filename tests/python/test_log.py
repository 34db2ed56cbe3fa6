"""RUST_LOG in Python: the engine's log on stderr, and nothing without it."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys, torch
from mono_quant import quantize
quantize(torch.nn.Sequential(torch.nn.Linear(64, 32)), bits=8, dynamic=True, device="cpu")
torch.save({"fc.weight": torch.randn(32, 64)}, sys.argv[1] + "/in.pt")
quantize(sys.argv[1] + "/in.pt", bits=8, dynamic=True, device="cpu", output=sys.argv[1] + "/out.safetensors")
"""


@pytest.mark.parametrize("wanted", ["monoquant=info", None])
def test_rust_log(tmp_path, wanted):
    environment = {name: value for name, value in os.environ.items() if name != "RUST_LOG"}
    environment |= {"RUST_LOG": wanted} if wanted else {}
    ran = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and not ran.stdout, ran.stderr
    log = [line for line in ran.stderr.splitlines() if " INFO monoquant" in line]
    for tensor in ("0.weight", "fc.weight"):
        assert any("decided" in line and f'tensor="{tensor}"' in line for line in log) == bool(wanted), ran.stderr
    # of each of the two; a module's tensors are planned before the run, and written to memory
    for stage, times in {"device": 2, "read": 2, "kernel": 2, "write": 2, "plan": 1, "commit": 1}.items():
        assert sum(f'took stage="{stage}"' in line for line in log) == (times if wanted else 0), ran.stderr
