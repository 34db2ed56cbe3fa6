"""The same quantizations in plain torch operations on bf16 weights in memory, on all cores.

Reads `int8` or `int4` from stdin, and answers each with bytes of weights and seconds, the best of three.
"""

import sys
import time

import torch


def int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 a channel, symmetric."""
    x = weight.float()
    scale = (x.abs().amax(1, keepdim=True) / 127.5).to(weight.dtype)
    return torch.round(x / scale.float()).clamp(-128, 127).to(torch.int8), scale


def int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int4 in groups of 128, symmetric, eight codes a word."""
    x = weight.float().view(-1, 128)
    scale = (x.abs().amax(1, keepdim=True) / 7.5).to(weight.dtype)
    codes = (torch.round(x / scale.float()).clamp(-8, 7) + 8).to(torch.int32).view(-1, 8)
    words = (codes << torch.arange(0, 32, 4, dtype=torch.int32)).sum(1, dtype=torch.int32)
    return words.view(weight.shape[0], -1), scale


def main() -> None:
    torch.manual_seed(0)
    layers = [torch.randn(4096, 4096).bfloat16() for _ in range(4)]
    size = sum(layer.nbytes for layer in layers)
    print("ready", flush=True)
    for line in sys.stdin:
        quantize = {"int8": int8, "int4": int4}[line.strip()]
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            for layer in layers:
                quantize(layer)
            best = min(best, time.perf_counter() - start)
        print(size, best, flush=True)


if __name__ == "__main__":
    main()
