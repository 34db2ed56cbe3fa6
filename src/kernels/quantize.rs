//! Scales, codes and errors in one reading of the weights: [`super::minmax`], [`super::qparams`], [`super::quantize_pack`]
//! and [`super::error`] one after another, group by group, or the last two where the scales are there (`scaled`).
//!
//! For groups and rows of whole runs of eight weights; the bytes are those of the four steps. Twin:
//! `shaders/quantize.wgsl`.

use super::{
    Binding, Kernel, TileBuffers, TileParams, arithmetic::*, bits::*, minmax::chunk_range,
    qparams::range_qparams,
};
use multiversion::{multiversion, target::target_cfg_f};
use std::{hint::black_box, ops::Range};

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "quantize",
    wgsl: include_str!("../../shaders/quantize.wgsl"),
    cpu: quantize,
    threads: |p| p.groups,
    team: true,
    touches: |p| {
        vec![
            (Binding::Input, p.float_words(p.input_dtype) as usize),
            (Binding::Ranges, 2 * p.groups as usize),
            (Binding::Scales, p.groups as usize),
            (Binding::ZeroPoints, p.groups as usize),
            (Binding::Output, p.code_words() as usize),
            (Binding::Errors, 2 * p.chunks as usize),
        ]
    },
};

/// Whether the step can do what the four do.
pub fn suits(params: &TileParams) -> bool {
    params.group_len.is_multiple_of(8) && params.row_len.is_multiple_of(8)
}

/// Weights that are handled together: they stay in the nearest cache from range to code.
const SPAN: usize = 8192;
/// Weights coded at a time, and partial sums kept side by side: a whole number of vectors everywhere.
const LANES: usize = 16;
/// 3 · 2^22: adding it rounds to an integer, ties to even, which lands in the low bits.
const MAGIC: f32 = 12_582_912.0;
/// 3 · 2^10: adding it rounds what is smaller than 512 to 12 binary places.
const PLACES: f32 = 3072.0;

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma",
    "x86_64+avx2+fma",
    "x86_64+sse4.1"
))]
fn quantize(params: &TileParams, b: &mut TileBuffers) {
    let mut scratch = [0; SPAN];
    let fused = cfg!(target_arch = "aarch64") || target_cfg_f!(target_feature = "fma");
    let parts = (SPAN / params.chunk_len.max(1) as usize).max(1);
    let per_group = params.chunks_per_group as usize;
    let groups = params.groups as usize;
    let together = (parts / per_group.max(1)).max(1);
    for first in (0..groups).step_by(together) {
        let last = (first + together).min(groups);
        if params.scaled == 0 {
            for group in first..last {
                let mut range = [0, 0];
                for chunk in 0..params.chunks_per_group {
                    let (low, high) = chunk_range(params, &b.input, params.chunk_of(group as u32, chunk));
                    range = [range[0].max(low), range[1].max(high)];
                }
                b.ranges[2 * group..][..2].copy_from_slice(&range);
            }
            let ranges = &b.ranges[2 * first..2 * last];
            range_qparams(params, ranges, &mut b.scales[first..last], &mut b.zero_points[first..last]);
        }
        for chunk in (first * per_group..last * per_group).step_by(parts) {
            let chunks = chunk..(chunk + parts).min(last * per_group);
            let input = std::mem::take(&mut b.input);
            let halves: &[u16] = bytemuck::cast_slice(&input);
            let f16 = |h: u16| flush(f16_to_f32(u32::from(h)));
            // below the normals every code is that of zero, whatever the scale
            let bf16 = |h: u16| u32::from(h) << 16;
            match (params.input_dtype, params.scale_dtype) {
                (F32, _) => encode::<false, _>(params, &input, flush, b, chunks, fused, &mut scratch),
                (F16, F32) => encode::<false, _>(params, halves, f16, b, chunks, fused, &mut scratch),
                (F16, _) => encode::<true, _>(params, halves, f16, b, chunks, fused, &mut scratch),
                (_, F32) => encode::<false, _>(params, halves, bf16, b, chunks, fused, &mut scratch),
                (_, _) => encode::<true, _>(params, halves, bf16, b, chunks, fused, &mut scratch),
            }
            b.input = input;
        }
    }
}

/// Codes and errors of some parts of groups.
#[inline(always)]
fn encode<const HALVES: bool, T: Copy + Default>(
    params: &TileParams,
    weights: &[T],
    decode: impl Fn(T) -> u32 + Copy,
    b: &mut TileBuffers,
    chunks: Range<usize>,
    fused: bool,
    scratch: &mut [u8; SPAN],
) {
    let per_group = params.chunks_per_group;
    let (mut group, mut part) = (chunks.start as u32 / per_group, chunks.start as u32 % per_group);
    let start = params.chunk_of(group, part).start;
    let mut end = start;
    for errors in &mut b.errors[chunks] {
        let coder = Coder::new(params, b.scales[group as usize], b.zero_points[group as usize], fused);
        let span = params.chunk_of(group, part);
        end = span.end;
        let codes = &mut scratch[span.start - start..span.end - start];
        *errors = coder.code::<HALVES, T>(&weights[span], decode, codes);
        part += 1;
        if part == per_group {
            (group, part) = (group + 1, 0);
        }
    }
    let whole = start..end;
    // whole words, as rows and groups are whole runs of eight; packed at once, long after the codes were stored
    let bits = params.bits as usize;
    let out: &mut [u8] = bytemuck::cast_slice_mut(&mut b.output);
    let out = &mut out[whole.start * bits / 8..whole.end * bits / 8];
    let codes = &scratch[..whole.len()];
    if bits == 8 {
        out.copy_from_slice(codes);
    } else {
        for (byte, pair) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
            let pair = u16::from_le_bytes(*pair) & 0x0f0f;
            *byte = (pair | (pair >> 4)) as u8;
        }
    }
}

#[derive(Clone, Copy)]
struct Coder {
    scale: f32,
    inverse: f32,
    /// Added to a quotient: rounds it to its code.
    shift: f32,
    lowest: f32,
    highest: f32,
    offset: u32,
    /// Whether the machine multiplies and adds in one step.
    fused: bool,
}

impl Coder {
    #[inline(always)]
    fn new(params: &TileParams, scale: u32, zero_point: i32, fused: bool) -> Self {
        Coder {
            scale: f32::from_bits(scale),
            inverse: 1.0 / f32::from_bits(scale),
            shift: MAGIC + zero_point as f32,
            lowest: MAGIC + params.qmin as f32,
            highest: MAGIC + params.qmax as f32,
            offset: params.code_offset as u32,
            fused,
        }
    }

    /// Codes the weights, a byte each, and returns the sums of [`super::error`].
    #[inline(always)]
    fn code<const HALVES: bool, T: Copy + Default>(
        &self,
        weights: &[T],
        decode: impl Fn(T) -> u32 + Copy,
        codes: &mut [u8],
    ) -> [f32; 2] {
        let (mut signal, mut noise) = ([0.0; LANES], [0.0; LANES]);
        let (long, rest) = weights.as_chunks::<{ 4 * LANES }>();
        let (code_long, code_rest) = codes.as_chunks_mut::<{ 4 * LANES }>();
        for (run, codes) in long.iter().zip(code_long) {
            for (run, codes) in run.as_chunks::<LANES>().0.iter().zip(codes.as_chunks_mut::<LANES>().0) {
                let found = self.run::<HALVES, T>(run, decode, codes);
                for i in 0..LANES {
                    signal[i] = self.square_added(found[0][i], signal[i]);
                    noise[i] = self.square_added(found[1][i], noise[i]);
                }
            }
        }
        let (runs, rest) = rest.as_chunks::<LANES>();
        let (code_runs, code_rest) = code_rest.as_chunks_mut::<LANES>();
        for (run, codes) in runs.iter().zip(code_runs) {
            let found = self.run::<HALVES, T>(run, decode, codes);
            for i in 0..LANES {
                signal[i] = self.square_added(found[0][i], signal[i]);
                noise[i] = self.square_added(found[1][i], noise[i]);
            }
        }
        if !rest.is_empty() {
            // zeros add nothing to the sums
            let (mut run, mut codes) = ([T::default(); LANES], [0; LANES]);
            run[..rest.len()].copy_from_slice(rest);
            let found = self.run::<HALVES, T>(&run, decode, &mut codes);
            for i in 0..LANES {
                signal[i] = self.square_added(found[0][i], signal[i]);
                noise[i] = self.square_added(found[1][i], noise[i]);
            }
            code_rest.copy_from_slice(&codes[..rest.len()]);
        }
        totals(signal, noise)
    }

    /// Codes some weights, and returns their quotients and errors.
    #[inline(always)]
    fn run<const HALVES: bool, T: Copy>(
        &self,
        weights: &[T; LANES],
        decode: impl Fn(T) -> u32,
        codes: &mut [u8; LANES],
    ) -> [[f32; LANES]; 2] {
        let mut found = [[0.0; LANES]; 2];
        for i in 0..LANES {
            let x = f32::from_bits(decode(weights[i]));
            let quotient = if HALVES { x * self.inverse } else { x / self.scale };
            // A quotient of two halves is half-way between codes or at least 2^-12 away from that: a product, which is
            // off by less than 2^-14, becomes half-way by rounding to 12 binary places if it was.
            let mut code =
                if HALVES { (quotient + PLACES) + (self.shift - PLACES) } else { quotient + self.shift };
            code = if code > self.lowest { code } else { self.lowest };
            code = if code < self.highest { code } else { self.highest };
            codes[i] = code.to_bits().wrapping_add(self.offset) as u8;
            let error = quotient - (code - self.shift);
            found[0][i] = quotient;
            found[1][i] = error;
        }
        found
    }

    /// Errors are outside the contract on bytes: one rounding or two, as the machine likes.
    #[inline(always)]
    fn square_added(&self, x: f32, sum: f32) -> f32 {
        if self.fused { x.mul_add(x, sum) } else { x * x + sum }
    }
}

/// The sums of both, side by side in few steps of vectors.
#[inline(always)]
fn totals(signal: [f32; LANES], noise: [f32; LANES]) -> [f32; 2] {
    // opaque, or the compiler would sum in the order that comes last, from small parts, all along
    let [a, b] = black_box([signal, noise]);
    let mut eight = [[0.0; 8]; 2];
    for i in 0..8 {
        eight[0][i] = a[i] + a[i + 8];
        eight[1][i] = b[i] + b[i + 8];
    }
    let mut four = [0.0; 8];
    for i in 0..4 {
        four[i] = eight[0][i] + eight[0][i + 4];
        four[i + 4] = eight[1][i] + eight[1][i + 4];
    }
    [(four[0] + four[2]) + (four[1] + four[3]), (four[4] + four[6]) + (four[5] + four[7])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::quantize_pack::code;
    use rayon::prelude::*;

    /// Every pair of mantissas of 11 bits over the binades that codes come from, both here and in WGSL's form with an
    /// inverse that is off by as much as WGSL allows.
    #[test]
    fn codes_of_halves_are_those_of_the_real_quotient() {
        (0..1024u32).into_par_iter().for_each(|mantissa| {
            let scale = (127 << 23) | (mantissa << 13);
            let inverse = (1.0 / f32::from_bits(scale)).to_bits();
            for (binade, sign) in (-2..=8).flat_map(|b| [(b, 0), (b, SIGN)]) {
                let weight = |n: u32| sign | ((127 + binade) as u32) << 23 | (n << 13);
                let weights: Vec<u32> = (0..1024).map(weight).collect();
                for (bits, symmetric, z) in [(8, true, 0), (8, false, -128), (8, false, 127), (4, false, 3)] {
                    let params = TileParams::default().with_grid(bits, symmetric, false);
                    let expected: Vec<i32> = weights.iter().map(|&x| code(&params, x, scale, z)).collect();
                    let mut codes = [0; 1024];
                    Coder::new(&params, scale, z, true).code::<true, u32>(&weights, |x| x, &mut codes);
                    assert!(expected.iter().zip(codes).all(|(&e, c)| e == i32::from(c as i8)), "{scale:#x}");
                    for inverse in [inverse - 3, inverse + 3].map(f32::from_bits) {
                        for (&x, &expected) in weights.iter().zip(&expected) {
                            // in one rounding or two: a GPU may join the product and the sum
                            let (x, shift) = (f32::from_bits(x), MAGIC + z as f32 - PLACES);
                            for places in [x * inverse + PLACES, x.mul_add(inverse, PLACES)] {
                                let found = (places + shift).to_bits() as i32 - MAGIC.to_bits() as i32;
                                let found = found.clamp(params.qmin, params.qmax);
                                assert_eq!(found, expected, "{x:e} / {scale:#x}");
                            }
                        }
                    }
                }
            }
        });
    }
}
