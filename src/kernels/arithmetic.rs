//! Exact arithmetic on the bits of floats. Twin of the functions of `shaders/common.wgsl`, in the same order.

use super::{TileParams, bits::*};

/// What lies below the normals counts as zero.
#[inline(always)]
pub fn flush(x: u32) -> u32 {
    if x & MAGNITUDE < MIN_NORMAL { 0 } else { x }
}

/// x, by a way that no shader compiler can look through: what is computed from it stays a step of its own.
#[inline(always)]
pub fn opaque(params: &TileParams, x: u32) -> f32 {
    f32::from_bits(x ^ params.zero)
}

/// Orders the bits of floats as the floats are ordered; `ordered(-x) == !ordered(x)`.
#[inline(always)]
pub fn ordered(x: u32) -> u32 {
    x ^ (((x as i32 >> 31) as u32) | SIGN)
}

/// Inverse of [`ordered`].
#[inline(always)]
pub fn unordered(x: u32) -> u32 {
    if x >= SIGN { x ^ SIGN } else { !x }
}

/// Product of two floats, as bits.
#[inline(always)]
pub fn multiply(a: u32, b: u32) -> u32 {
    (f32::from_bits(a) * f32::from_bits(b)).to_bits()
}

/// Quotient of positive normal floats, rounded to nearest; below the normals 0, above them infinity.
///
/// The WGSL twin divides by integers; IEEE division is the same, as the tests show.
#[inline(always)]
pub fn div_rn(a: u32, b: u32) -> u32 {
    if a < MIN_NORMAL {
        return 0;
    }
    flush((f32::from_bits(a) / f32::from_bits(b)).to_bits()).min(INFINITY)
}

/// f32 to f16, nearest even. Without branches, so that loops over it become vector code.
#[inline(always)]
pub fn f32_to_f16(x: u32) -> u32 {
    let u = x & MAGNITUDE;
    let special = if u > INFINITY { 0x7e00 | ((u >> 13) & 0x3ff) } else { 0x7c00 };
    let normal = u.wrapping_sub(0x3800_0000).wrapping_add(0xfff + ((u >> 13) & 1)) >> 13;
    // beside 1/2 the last place of an f32 is that of a subnormal f16
    let subnormal = (f32::from_bits(u) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let magnitude = if u >= 0x477f_f000 {
        special
    } else if u >= 0x3880_0000 {
        normal
    } else {
        subnormal
    };
    ((x >> 16) & 0x8000) | magnitude
}

/// f16 to f32, exactly. Without branches, so that loops over it become vector code.
#[inline(always)]
pub fn f16_to_f32(h: u32) -> u32 {
    let sign = (h & 0x8000) << 16;
    let u = h & 0x7fff;
    // a subnormal is u · 2^-24, exact in f32; the normals move their exponent; infinity and NaN fill it
    let subnormal = (u as i32 as f32 * 2f32.powi(-24)).to_bits();
    let normal = (u << 13) + 0x3800_0000;
    let special = INFINITY | (u << 13) | if u > 0x7c00 { 0x40_0000 } else { 0 };
    sign | if u < 0x400 {
        subnormal
    } else if u < 0x7c00 {
        normal
    } else {
        special
    }
}

/// f32 to bf16, nearest even.
#[inline(always)]
pub fn f32_to_bf16(x: u32) -> u32 {
    if x & MAGNITUDE > INFINITY {
        return (x >> 16) | 0x40;
    }
    (x + 0x7fff + ((x >> 16) & 1)) >> 16
}

/// The bits of x in `dtype`, in the low half for 16-bit floats.
#[inline(always)]
pub fn narrow(x: u32, dtype: u32) -> u32 {
    match dtype {
        F32 => x,
        F16 => f32_to_f16(x),
        _ => f32_to_bf16(x),
    }
}

/// Inverse of [`narrow`].
#[inline(always)]
pub fn widen(x: u32, dtype: u32) -> u32 {
    match dtype {
        F32 => x,
        F16 => f16_to_f32(x),
        _ => x << 16,
    }
}

/// A scale as it is stored; one that is too small to work with becomes the dtype's eps, and everything decodes to zero.
#[inline(always)]
pub fn stored_scale(params: &TileParams, s: u32) -> u32 {
    let rounded = widen(narrow(s, params.scale_dtype), params.scale_dtype);
    if rounded >= MIN_SCALE {
        return rounded;
    }
    match params.scale_dtype {
        F32 => 0x3400_0000, // 2^-23
        F16 => 0x3a80_0000, // 2^-10
        _ => 0x3c00_0000,   // 2^-7
    }
}

/// Nearest integer to the f32 quotient x / s, ties to where result + z is even. Bits of non-negative floats.
///
/// WGSL promises no exact division, so its twin guesses with a product, and divides by integers only where the guess is
/// too close to call; here the quotient is at hand.
#[inline(always)]
pub fn round_quotient(x: u32, s: u32, z: i32) -> u32 {
    let magnitude = x.min((s + (10 << 23)).min(0x7f7f_ffff));
    let quotient = f32::from_bits(magnitude) / f32::from_bits(s);
    let k = truncate(quotient);
    let rest = quotient - k as i32 as f32; // exact
    let odd = (k.wrapping_add(z as u32)) & 1 == 1;
    k + u32::from((rest > 0.5) | ((rest == 0.5) & odd))
}

/// Integer part of a float in [0, 2^22): `as u32` in a form that compiles to a few vector instructions.
#[inline(always)]
fn truncate(x: f32) -> u32 {
    const MAGIC: f32 = 8_388_608.0; // 2^23: adding it rounds to an integer, which lands in the low bits
    let shifted = x + MAGIC;
    (shifted.to_bits() & 0x7f_ffff).wrapping_sub(u32::from(shifted - MAGIC > x))
}

/// Scale and zero point of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QParams {
    /// Bits of an f32.
    pub scale: u32,
    /// The code of zero.
    pub zero_point: i32,
}

/// Scale and zero point of a candidate for [-low, high]; number 0 covers the whole range. [`super::search`] says which
/// numbers there are.
#[inline(always)]
pub fn candidate(params: &TileParams, low: u32, high: u32, number: u32) -> QParams {
    if params.symmetric == 1 {
        let place = number.wrapping_sub(1);
        let narrowed = if params.bits == 4 {
            (50 + (place >> 1)) as i32 as f32 * 0.125
        } else {
            (124 + (place >> 1)) as i32 as f32
        };
        let steps = if number == 0 { (params.qmax - params.qmin) as f32 * 0.5 } else { narrowed };
        let scale = stored_scale(params, div_rn(low.max(high), steps.to_bits()));
        let sign = if number > 0 && place & 1 == 1 { SIGN } else { 0 };
        return QParams { scale: scale | sign, zero_point: 0 };
    }
    let shrink = ((64 - number) as i32 as f32 * 0.015625).to_bits(); // exact, like every factor of the form n/64
    let range = multiply((f32::from_bits(low) + f32::from_bits(high)).to_bits(), shrink);
    let scale = stored_scale(params, div_rn(range, ((params.qmax - params.qmin) as f32).to_bits()));
    let offset = round_quotient(flush(multiply(low, shrink)), scale, params.qmin);
    QParams { scale, zero_point: (params.qmin + offset as i32).min(params.qmax) }
}

/// Magnitude of a bound that is ordered bits, widened to include zero. 0 stands for "nothing seen".
#[inline(always)]
pub fn widened(bound: u32) -> u32 {
    if bound >= SIGN { bound & MAGNITUDE } else { 0 }
}

/// The code in the low bits of a packed word.
#[inline(always)]
pub fn decoded_code(params: &TileParams, stored: u32) -> i32 {
    let unused = 32 - params.bits;
    if params.code_offset != 0 {
        return ((stored << unused) >> unused) as i32 - params.code_offset;
    }
    (stored << unused) as i32 >> unused
}

/// x in output_dtype, in the low half for 16-bit floats. `counts[0]` is of finite values that overflowed, which are
/// clamped if the tile says so; `counts[1]` of values that were not finite.
#[inline(always)]
pub fn converted(params: &TileParams, counts: &mut [u32], x: u32) -> u32 {
    let narrowed = narrow(x, params.output_dtype);
    if x & MAGNITUDE >= INFINITY {
        counts[1] += 1;
        return narrowed;
    }
    if widen(narrowed, params.output_dtype) & MAGNITUDE < INFINITY {
        return narrowed;
    }
    counts[0] += 1;
    narrowed - params.saturate // the largest finite value lies just below infinity, on either side of zero
}

/// Code of a weight in a block whose step has this inverse, after `offset` was taken off the weight where the type has
/// one. Halves go up for Q4_0 and Q4_1, else away from zero. The inverse is not 0, which makes every code 0.
#[inline(always)]
pub fn block_code<const BLOCK: u32>(params: &TileParams, x: u32, inverse: u32, offset: u32) -> i32 {
    // the float sums of the reference, which round
    if BLOCK == Q4_0 {
        return (truncate(opaque(params, multiply(x, inverse)) + 8.5) as i32).min(15) - 8;
    }
    let mut y = x;
    if BLOCK != Q8_0 && BLOCK != Q6_K {
        y = flush((f32::from_bits(x) - f32::from_bits(offset)).to_bits());
    }
    if BLOCK == Q4_1 {
        return (truncate(opaque(params, multiply(y, inverse)) + 0.5) as i32).min(15);
    }
    let negative = (y ^ inverse) as i32 >> 31;
    let product = multiply(y & MAGNITUDE, inverse & MAGNITUDE).min(0x437f_0000); // 255
    let k = truncate(f32::from_bits(product));
    let magnitude = (k + u32::from(product >= (k as i32 as f32 + 0.5).to_bits())) as i32;
    ((magnitude ^ negative) - negative).clamp(params.qmin, params.qmax)
}

/// The real quotient in 1/256, halves up. The quotient lies below 2^23, the denominator below 2^20.
///
/// WGSL has no f64; here its division is exact enough: a quotient of this size that is no integer differs from one by
/// 2^-20, far more than an f64 rounds.
#[inline(always)]
pub fn fixed_quotient(numerator: i32, denominator: i32) -> i32 {
    let doubled = f64::from(numerator) * 512.0 + f64::from(denominator);
    (doubled / (2.0 * f64::from(denominator))) as i32
}

/// Nearest integer, ties to even, of a float in [-2^22, 2^22]: a form that compiles to two vector instructions.
#[inline(always)]
pub fn round_small(x: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0; // 3 · 2^22: adding it rounds to an integer, which lands in the low bits
    (x + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32
}

/// Squared error of a weight x that is decoded as (code · step − low) / 256; inverse is about 1 / step.
#[inline(always)]
pub fn code_error(params: &TileParams, x: i32, step: i32, low: i32, inverse: f32) -> u32 {
    let y = (x << 8) + low;
    let code = round_small(y as f32 * inverse).clamp(params.qmin, params.qmax);
    let difference = ((y - code * step + 128) >> 8).abs().min(8191);
    (difference * difference) as u32
}

/// Decodes weights `start..start + out.len()` of the tile, exactly.
#[inline(always)]
pub fn load_bits(params: &TileParams, input: &[u32], start: usize, out: &mut [u32]) {
    match params.input_dtype {
        F32 => out.copy_from_slice(&input[start..start + out.len()]),
        dtype => {
            let halves: &[u16] = bytemuck::cast_slice(input);
            let halves = &halves[start..start + out.len()];
            if dtype == F16 {
                out.iter_mut().zip(halves).for_each(|(o, &h)| *o = f16_to_f32(h.into()));
            } else {
                out.iter_mut().zip(halves).for_each(|(o, &h)| *o = u32::from(h) << 16);
            }
        }
    }
}

/// Like [`load_bits`]; what lies below the normals becomes zero.
#[inline(always)]
pub fn load_weights(params: &TileParams, input: &[u32], start: usize, out: &mut [u32]) {
    load_bits(params, input, start, out);
    out.iter_mut().for_each(|x| *x = flush(*x));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Float;
    use rayon::prelude::*;

    /// All 2^32 inputs, against the half crate.
    #[test]
    fn narrowing_is_to_nearest_even_for_every_float() {
        let wrong = (0..=u16::MAX).into_par_iter().find_any(|&high| {
            (0..=u16::MAX).any(|low| {
                let x = u32::from(high) << 16 | u32::from(low);
                let value = f32::from_bits(x);
                let (f16, bf16) =
                    (half::f16::from_f32(value).to_bits(), half::bf16::from_f32(value).to_bits());
                f32_to_f16(x) != u32::from(f16) || f32_to_bf16(x) != u32::from(bf16)
            })
        });
        assert_eq!(wrong, None);
    }

    #[test]
    fn widening_is_exact_for_every_half() {
        for h in 0..=u16::MAX {
            let expected = Float::F16.decode(&h.to_le_bytes());
            let found = f32::from_bits(f16_to_f32(h.into()));
            assert!(
                found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()),
                "{h:#06x}"
            );
        }
    }

    /// Every pair of mantissas over the binades that matter, against exact arithmetic: x/s is compared with k + 1/2 as
    /// 2x with (2k + 1)s, which f64 holds exactly.
    fn quotients(mantissa_bits: u32, binades: std::ops::RangeInclusive<i32>) -> u64 {
        let mantissas = 1u32 << mantissa_bits;
        (0..mantissas)
            .into_par_iter()
            .map(|m| {
                let s = (127 << 23) | (m << (23 - mantissa_bits));
                let mut checked = 0;
                for binade in binades.clone() {
                    for n in 0..mantissas {
                        let x = ((127 + binade) as u32) << 23 | (n << (23 - mantissa_bits));
                        for z in [0, 1] {
                            let k = f64::from(round_quotient(x, s, z));
                            let (twice, s) =
                                (2.0 * f64::from(f32::from_bits(x)), f64::from(f32::from_bits(s)));
                            let (below, above) = ((2.0 * k - 1.0) * s, (2.0 * k + 1.0) * s);
                            let even = (k as i64 + i64::from(z)) % 2 == 0;
                            let right =
                                below < twice && twice < above || even && (below == twice || above == twice);
                            assert!(right, "{x:#x} / {s} with z {z} gave {k}");
                            checked += 1;
                        }
                    }
                }
                checked
            })
            .sum()
    }

    #[test]
    fn codes_are_those_of_the_real_quotient() {
        assert_eq!(quotients(7, -3..=9), 128 * 128 * 13 * 2);
        assert_eq!(quotients(10, -2..=8), 1024 * 1024 * 11 * 2);
    }

    #[test]
    fn fixed_quotients_are_exact() {
        let mut random = crate::kernels::cases::Random(5);
        for i in 0..1_000_000u64 {
            let word = random.next_u64();
            let denominator = 1 + (word as i64 & 0xf_ffff) / [1, 16, 4096][i as usize % 3];
            let mut numerator = (word >> 32) as i64 & 0x7ff_ffff;
            if i % 2 == 0 {
                numerator =
                    (numerator / denominator * denominator + denominator * (i as i64 & 255) / 512).max(0);
            }
            numerator = numerator.min((1 << 22) * denominator);
            let expected = (512 * numerator + denominator) / (2 * denominator);
            assert_eq!(i64::from(fixed_quotient(numerator as i32, denominator as i32)), expected);
        }
    }

    #[test]
    fn small_floats_round_to_even() {
        for i in -100_000..100_000 {
            for x in [i as f32 * 0.25, i as f32 * 41.5, f32::from_bits((i as f32).to_bits() + 1)] {
                assert_eq!(round_small(x), x.round_ties_even() as i32, "{x}");
            }
        }
    }

    #[test]
    fn order_of_bits_is_order_of_floats() {
        let values = [f32::NEG_INFINITY, -1e30, -1.0, -1e-38, -0.0, 0.0, 1e-38, 1.0, 1e30, f32::INFINITY];
        let bits: Vec<u32> = values.iter().map(|v| ordered(v.to_bits())).collect();
        assert!(bits.is_sorted_by(|a, b| a < b));
        for v in values {
            assert_eq!(unordered(ordered(v.to_bits())), v.to_bits());
            assert_eq!(ordered((-v).to_bits()), !ordered(v.to_bits()));
        }
    }
}
