"""`quantize(state_dict, bits=8, dynamic=True)` beside the same in plain torch operations, in one run.

    target/venv/bin/python benches/python_api.py [GB]

Prints the time of both, their ratio, and the memory that quantize took beyond its output.
"""

import resource
import sys
import time

import torch
from mono_quant import quantize


def in_torch(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 a channel, symmetric, as compressed-tensors' scheme has it, in float32."""
    x = weight.float()
    scale = (x.abs().amax(1, keepdim=True) / 127.5).to(weight.dtype)
    return torch.round(x / scale.float()).clamp(-128, 127).to(torch.int8), scale


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    layers = max(1, round(gigabytes * 1e9 / (4096 * 4096 * 2)))
    torch.manual_seed(0)
    one = torch.randn(4096, 4096).bfloat16()
    state = {f"layers.{i}.weight": one.roll(i, 0) for i in range(layers)}
    size = sum(t.nbytes for t in state.values())

    before = peak()
    times = {"mono_quant": [], "torch": []}
    extra = None
    for _ in range(3):
        start = time.perf_counter()
        result = quantize(state, bits=8, dynamic=True, device="cpu")
        times["mono_quant"].append(time.perf_counter() - start)
        output = sum(t.nbytes for t in result.model.values())
        extra = peak() - before - output if extra is None else extra
        start = time.perf_counter()
        expected = {name: in_torch(weight) for name, weight in state.items()}
        times["torch"].append(time.perf_counter() - start)
        for name, (codes, _) in list(expected.items())[:1]:
            assert torch.equal(codes, result.model[name]), "the two compute different codes"
        del expected, result
    best = {name: min(found) for name, found in times.items()}
    print(f"{size / 1e9:.2f} GB of bf16, {torch.get_num_threads()} threads, best of 3")
    for name, seconds in best.items():
        print(f"{name:10} {seconds:6.2f} s  {size / 1e9 / seconds:5.2f} GB/s")
    print(f"ratio      {best['torch'] / best['mono_quant']:6.2f}")
    print(f"memory beyond the output: {extra / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
