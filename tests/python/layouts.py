"""GPTQ's and AWQ's bytes, written and read in numpy as those formats are described: nobody else's code.

Codes and zero points are unsigned; matrices are [O, I], and [O, G] with G groups a row, as in compressed-tensors.
"""

import numpy as np

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack(values: np.ndarray, bits: int, order=None) -> np.ndarray:
    """Rows of small numbers → rows of int32, the first number lowest."""
    many = 32 // bits
    values = values.astype(np.uint32).reshape(len(values), -1, many)
    if order:
        values = values[:, :, order]
    shifts = np.arange(many, dtype=np.uint32) * np.uint32(bits)
    return np.bitwise_or.reduce(values << shifts, axis=-1).astype(np.uint32).view(np.int32)


def unpack(words: np.ndarray, bits: int, order=None) -> np.ndarray:
    """The other way: int64."""
    many = 32 // bits
    shifts = np.arange(many, dtype=np.uint32) * np.uint32(bits)
    values = (np.ascontiguousarray(words).view(np.uint32)[:, :, None] >> shifts) & np.uint32(2**bits - 1)
    if order:
        values = values[:, :, np.argsort(order)]
    return values.reshape(len(words), -1).astype(np.int64)


def gptq(codes, zeros, scales, bits: int, *, v2=False) -> dict[str, np.ndarray]:
    """A module's tensors, by the ends of their names."""
    inputs, groups = codes.shape[1], scales.shape[1]
    stored = zeros.T if v2 else (zeros.T - 1) % 2**bits
    return {
        "qweight": np.ascontiguousarray(pack(codes, bits).T),
        "qzeros": pack(stored, bits),
        "scales": np.ascontiguousarray(scales.T.astype(np.float16)),
        "g_idx": (np.arange(inputs) // (inputs // groups)).astype(np.int32),
    }


def from_gptq(stored, bits: int, *, v2=False):
    """Codes, zero points and scales."""
    codes = unpack(stored["qweight"].T, bits)
    zeros = unpack(stored["qzeros"], bits).T
    inputs, groups = codes.shape[1], stored["scales"].shape[0]
    assert np.array_equal(stored["g_idx"], np.arange(inputs) // (inputs // groups))
    return codes, zeros if v2 else zeros + 1, stored["scales"].T


def awq(codes, zeros, scales) -> dict[str, np.ndarray]:
    return {
        "qweight": pack(np.ascontiguousarray(codes.T), 4, AWQ_ORDER),
        "qzeros": pack(np.ascontiguousarray(zeros.T), 4, AWQ_ORDER),
        "scales": np.ascontiguousarray(scales.T.astype(np.float16)),
    }


def from_awq(stored):
    return unpack(stored["qweight"], 4, AWQ_ORDER).T, unpack(stored["qzeros"], 4, AWQ_ORDER).T, stored["scales"].T


def values(codes, zeros, scales) -> np.ndarray:
    """(q − z) · s in f32, which is exact: at most 9 bits times 11."""
    per_weight = codes.shape[1] // scales.shape[1]
    zeros, scales = (np.repeat(t, per_weight, axis=1) for t in (zeros, scales.astype(np.float32)))
    return (codes - zeros).astype(np.float32) * scales


def rounded_to_nearest(weight: np.ndarray, bits: int, group: int, symmetric: bool):
    """Codes, zero points and scales as numerics.md orders the steps, with f16 scales."""
    rows, inputs = weight.shape
    x = weight.astype(np.float32).reshape(rows, -1, inputs if group == -1 else group)
    top = 2**bits - 1
    low, high = np.minimum(x.min(-1), 0), np.maximum(x.max(-1), 0)
    span = 2 * np.maximum(-low, high) if symmetric else high - low
    scales = (span / np.float32(top)).astype(np.float16)
    dead = scales.astype(np.float32) == 0
    scales[dead] = np.float16(2**-10)
    s = scales.astype(np.float64)
    zeros = np.full(low.shape, 2 ** (bits - 1)) if symmetric else np.clip(np.rint(-low / s), 0, top)
    zeros = np.where(dead, 2 ** (bits - 1) if symmetric else 0, zeros).astype(np.int64)
    codes = np.clip(np.rint(x / s[..., None] + zeros[..., None]), 0, top).astype(np.int64)
    codes = np.where(dead[..., None], zeros[..., None], codes)
    return codes.reshape(weight.shape), zeros, scales
