"""Codes, scales and zero points are those of compressed-tensors, computed in f32 from the stored scales.

compressed-tensors' own compressor computes in the weights' dtype, zero points from scales before rounding; its
functions are called here on f32 tensors, one step after the other, as the contract orders the steps: the scale is
rounded to the dtype it is stored in, zero points and codes follow from the rounded one. Weights and scales of f16
and bf16 leave no difference. With f32 scales torch rounds twice where there is a zero point (the quotient, then its sum
with the zero point); the definition of a code rounds the quotient only, so the two may differ by one, rarely.
"""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization import dequantize as ct_dequantize
from compressed_tensors.quantization import quantize as ct_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from helpers import TINY_LLAMA, codes, dequantize, quantize, tensors
from safetensors.torch import save_file

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
MINMAX = ["--observer", "minmax"]
# Name → options, bits, strategy, weights a group, packed
SCHEMES = {
    "w4a16 group 128": (["--bits", 4, *MINMAX], 4, "group", 128, True),
    "w4a16 group 32": (["--bits", 4, *MINMAX, "--group-size", 32], 4, "group", 32, True),
    "w4a16 channel": (["--bits", 4, *MINMAX, "--strategy", "channel"], 4, "channel", None, True),
    "w8a16 channel": (["--preset", "w8a16"], 8, "channel", None, True),
    "w8a16 group 128": (["--preset", "w8a16", "--group-size", 128], 8, "group", 128, True),
    "w8a8 channel": (["--bits", 8], 8, "channel", None, False),
    "w8a8 group 32": (["--bits", 8, "--group-size", 32], 8, "group", 32, False),
    "w8a8 tensor": (["--bits", 8, "--strategy", "tensor"], 8, "tensor", None, False),
}
schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
symmetries = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "f16", "f32"])


def gaussian(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def hard_rows(columns: int) -> torch.Tensor:
    """Rows that are hard in different ways; their number divides neither by 8 nor by 4."""
    plain = 0.02 * gaussian(64, columns)
    outliers = plain.clone()
    outliers[::2, ::37] *= 300
    scattered = plain * torch.exp2(12 * gaussian(64, columns).clamp(-1, 0))
    tiny = torch.cat([plain[:16] * scale for scale in (1e-3, 1e-5, 1e-6)])
    single = torch.zeros(4, columns)
    single[range(4), [0, 31, 64, columns - 1]] = torch.tensor([1.0, -3.0, 1e-5, 60000.0])
    one_sided = torch.cat([plain[:8].abs(), -plain[:8].abs()])
    return torch.cat([plain, outliers, scattered, tiny, torch.zeros(3, columns), single, one_sided])


def ties(columns: int, bits: int) -> torch.Tensor:
    """Rows of multiples of s/2 whose groups of 32 reach ±(2^b − 1)·s/2, or, one-sided, (2^b − 1)·s."""
    top = 2**bits - 1
    halves = torch.randint(-top, top + 1, (64, columns), generator=torch.Generator().manual_seed(bits)).float()
    halves[:, ::32], halves[:, 1::32] = -top, top
    shifted = halves[:16] - top  # 0 to -(2^b − 1)·s
    lopsided = halves[16:48].clone()
    lopsided[:, ::32], lopsided[:, 1::32] = -7, 2 * top - 7  # zero point at a tie
    lopsided = lopsided.clamp(-7, 2 * top - 7)
    steps = torch.exp2(torch.arange(-12, 4)).repeat_interleave(7)[:, None]
    return steps * torch.cat([halves, shifted, lopsided])


def matrices(bits: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        "hard.weight": hard_rows(512).to(dtype),
        "ties.weight": ties(256, bits).to(dtype),
        "plain.weight": (0.02 * gaussian(512, 1024)).to(dtype),
    }


def oracle(weight: torch.Tensor, bits: int, symmetric: bool, strategy: str, group_size: int | None):
    """Scale in the weight's dtype, zero point, codes, and the weight decoded again."""
    args = QuantizationArgs(
        num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group_size, scale_dtype=weight.dtype
    )
    x = weight.float()
    shape = {"group": (len(x), -1, group_size or 1), "channel": (len(x), 1, -1), "tensor": (1, -1)}[strategy]
    low, high = x.view(shape).aminmax(dim=-1)
    scale, zero = calculate_qparams(low, high, args)
    if not symmetric:
        low, qmin, qmax = low.clamp(max=0), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        zero = (qmin - low / scale).clamp(qmin, qmax).round().to(torch.int8)
    if weight.dtype == torch.float32 and not symmetric:
        q = definition(x.view(shape), scale[..., None], zero[..., None], bits).view(x.shape)
    else:
        q = ct_quantize(x, scale, zero, args, dtype=torch.int8)
    back = ct_dequantize(q, scale, zero, args).to(weight.dtype)
    return scale.to(weight.dtype), zero.to(torch.int8), q, back


def definition(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes for f32 scales: |x| / s in f32 goes to the nearest integer, a tie to the even code."""
    quotient = x.abs().minimum(scale * 1024) / scale  # beyond, every code clamps
    k = quotient.trunc()
    rest = quotient - k
    k += (rest > 0.5) | ((rest == 0.5) & ((k + zero) % 2 == 1))
    return (x.sign() * k + zero).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8)


def check(weight, stored, restored, name, bits, symmetric, strategy, group_size, packed):
    """Compares a layer with the oracle, bit for bit."""
    scale, zero, q, back = oracle(weight, bits, symmetric, strategy, group_size)
    assert torch.equal(stored[f"{name}_scale"], scale)
    assert (f"{name}_zero_point" in stored) == (not symmetric)
    if not symmetric:
        zero = pack_to_int32(zero, bits, packed_dim=0) if packed else zero
        assert torch.equal(stored[f"{name}_zero_point"], zero)
    if packed:
        assert stored[f"{name}_shape"].tolist() == list(weight.shape)
        assert torch.equal(stored[f"{name}_packed"], pack_to_int32(q, bits))
    else:
        assert stored[name].dtype == torch.int8 and torch.equal(stored[name], q)
    assert restored[name].dtype == weight.dtype and torch.equal(restored[name], back)


@dtypes
@symmetries
@schemes
def test_hard_matrices_match_compressed_tensors(scheme, symmetric, dtype, tmp_path):
    options, bits, *rest = scheme
    weights = matrices(bits, dtype)
    save_file(weights, tmp_path / "in.safetensors")
    kind = "symmetric" if symmetric else "asymmetric"
    quantize(tmp_path / "in.safetensors", tmp_path / "q.safetensors", "--scheme", kind, *options)
    stored = tensors(tmp_path / "q.safetensors")
    restored = tensors(dequantize(tmp_path / "q.safetensors", tmp_path / "d.safetensors"))
    assert restored.keys() == weights.keys()
    for name, weight in weights.items():
        check(weight, stored, restored, name, bits, symmetric, *rest)


@symmetries
@schemes
def test_tiny_llama_matches_compressed_tensors(scheme, symmetric, tmp_path):
    options, bits, *rest = scheme
    quantize(TINY_LLAMA, tmp_path / "q", "--scheme", "symmetric" if symmetric else "asymmetric", *options)
    original, stored = tensors(TINY_LLAMA), tensors(tmp_path / "q")
    restored = tensors(dequantize(tmp_path / "q", tmp_path / "d"))
    layers = [name for name in original if f"{name}_scale" in stored]
    assert len(layers) == 21
    for name in layers:
        check(original[name], stored, restored, name, bits, symmetric, *rest)
    for name in original.keys() - set(layers):
        assert torch.equal(stored[name], original[name]) and torch.equal(restored[name], original[name])


@symmetries
@pytest.mark.parametrize("bits", [4, 8])
def test_f32_codes_differ_from_torchs_quotient_in_at_most_one_in_a_million(bits, symmetric, tmp_path):
    weight = gaussian(2048, 2048)
    save_file({"w.weight": weight}, tmp_path / "in.safetensors")
    kind = "symmetric" if symmetric else "asymmetric"
    options = ["--bits", bits, "--group-size", 128, "--scheme", kind]
    quantize(tmp_path / "in.safetensors", tmp_path / "q.safetensors", *options)
    found, zero, scale = codes(tensors(tmp_path / "q.safetensors"), "w.weight", bits)
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=128)
    difference = (found.int() - ct_quantize(weight, scale, zero, args, dtype=torch.int8).int()).abs()
    assert difference.max() <= 1
    assert difference.sum() <= weight.numel() / 1e6


@symmetries
@dtypes
def test_rows_that_fill_no_whole_word_match_compressed_tensors(dtype, symmetric, tmp_path):
    weight = gaussian(27, 75).to(dtype)
    save_file({"w.weight": weight}, tmp_path / "in.safetensors")
    options = ["--bits", 4, *MINMAX, "--strategy", "channel", "--scheme", "symmetric" if symmetric else "asymmetric"]
    quantize(tmp_path / "in.safetensors", tmp_path / "q.safetensors", *options)
    stored = tensors(tmp_path / "q.safetensors")
    restored = tensors(dequantize(tmp_path / "q.safetensors", tmp_path / "d.safetensors"))
    check(weight, stored, restored, "w.weight", 4, symmetric, "channel", None, True)


@symmetries
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "dtype, eps, ranges",
    [
        (torch.bfloat16, 2.0**-7, [0, 2.0**-130, 2.0**-126, 1.5 * 2.0**-123]),
        (torch.float16, 2.0**-10, [0, 2.0**-24]),
        (torch.float32, 2.0**-23, [0, 2.0**-149, 2.0**-126, 1.5 * 2.0**-123]),
    ],
    ids=["bf16", "f16", "f32"],
)
def test_rows_below_the_smallest_scale_decode_to_zero(dtype, eps, ranges, bits, symmetric, tmp_path):
    """Where s is zero in its dtype or below 2⁻¹²⁵; compressed-tensors would go on with a subnormal s."""
    weight = torch.cat([r * gaussian(1, 64).clamp(-1, 1) for r in ranges]).to(dtype)
    save_file({"w.weight": weight}, tmp_path / "in.safetensors")
    options = ["--bits", bits, "--strategy", "channel", "--scheme", "symmetric" if symmetric else "asymmetric"]
    quantize(tmp_path / "in.safetensors", tmp_path / "q.safetensors", *options)
    q, zero, scale = codes(tensors(tmp_path / "q.safetensors"), "w.weight", bits)
    assert scale.flatten().tolist() == [eps] * len(ranges)
    assert torch.equal(q, zero.expand_as(q))
    assert set(zero.flatten().tolist()) == {0 if symmetric else -(2 ** (bits - 1))}
