"""int8 inputs: finding scales, rounding, and multiplying int8 by int8.

q = clamp(round half even(x/s + z), −128, 127) and x̂ = (q − z)·s, in float32, as compressed-tensors has it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dynamic_scale(x: Tensor, dims: tuple[int, ...] | int) -> Tensor:
    """max|x| / 127.5 over `dims`, kept as 1; float32. Where it would be zero: float32's epsilon."""
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    scale = torch.maximum(low.abs(), high.abs()).float() / 127.5
    return scale.masked_fill(scale == 0, torch.finfo(torch.float32).eps)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """Codes of `x`, integral but float32, so that NaN stays NaN."""
    codes = x.float() / scale.float()
    if zero_point is not None:
        codes += zero_point
    return codes.round_().clamp_(-128, 127)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """`x` rounded to what int8 can say, in its own dtype. Gradients pass as if nothing had been rounded."""
    with torch.no_grad():
        codes = quantize(x, scale, zero_point)
        if zero_point is not None:
            codes -= zero_point
        rounded = codes.mul_(scale.float()).to(x.dtype)
    if torch.is_grad_enabled() and x.requires_grad:
        return x + (rounded - x).detach()
    return rounded


def _has_int8_matmul() -> bool:
    """Whether `torch._int_mm` is fast and exact on this CPU.

    It is where oneDNN has AVX-512 VNNI: measured 6 times as fast as a float32 product. Without VNNI its 16-bit sums may
    saturate, and without oneDNN it is a plain loop.
    """
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    if supported is None or not supported() or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    low, high = (torch.full((32, 64), value, dtype=torch.int8) for value in (-128, 127))
    products = {(-128, -128): (low, low), (-128, 127): (low, high), (127, 127): (high, high)}
    return all(bool((torch._int_mm(a, b.t()) == 64 * x * y).all()) for (x, y), (a, b) in products.items())


INT8_MATMUL = _has_int8_matmul()


def exact_in_int32(columns: int, symmetric: bool) -> bool:
    """Whether no sum of `columns` products of codes (less zero points) leaves int32."""
    return columns * (128 if symmetric else 255) ** 2 < 2**31


def int8_linear(x: Tensor, codes: Tensor, x_zero: Tensor | None, zero: Tensor | None) -> Tensor:
    """Σ (x − x_zero)·(codes − zero), exactly: int8 `[m, k]`, int8 `[n, k]` → int32 `[m, n]`.

    x_zero: int8 `[1]`. zero: int8 `[n, 1]` or `[1]`.
    """
    product = torch._int_mm(x, codes.t())
    zero = None if zero is None else zero.reshape(1, -1).int()
    if zero is not None:
        product -= x.sum(1, keepdim=True, dtype=torch.int32) * zero
    if x_zero is not None:
        # sums of rows; as a product, because `sum` would widen all codes first
        sums = torch._int_mm(codes, codes.new_ones(codes.shape[1], 1)).view(1, -1)
        if zero is not None:
            sums = sums - zero * codes.shape[1]
        product -= x_zero.int() * sums
    return product
