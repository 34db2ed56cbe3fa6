//! Scales, codes and errors in one reading of the weights: [`super::minmax`], [`super::qparams`], [`super::quantize_pack`]
//! and [`super::error`] one after another, group by group, or the last two where the scales are there (`scaled`).
//!
//! For groups and rows of whole runs of eight weights; the bytes are those of the four steps. Twin:
//! `shaders/quantize.wgsl`.

use super::{
    Binding, Kernel, TileBuffers, TileParams, arithmetic::*, bits::*, minmax::*, qparams::range_qparams,
};
use bytemuck::Pod;
use multiversion::{multiversion, target::target_cfg_f};
use std::ops::Range;

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

/// Weights that are handled together: they stay in a core's second cache from range to code. (In shorter spans the reading
/// ahead from memory is interrupted too often.)
const SPAN: usize = 65536;
/// Pairs of weights coded at a time, and partial sums kept side by side: a whole number of vectors everywhere.
const LANES: usize = 16;
/// 3 · 2^22: adding it rounds to an integer, ties to even, which lands in the low bits.
const MAGIC: f32 = 12_582_912.0;
/// 3 · 2^10: adding it rounds what is smaller than 512 to 12 binary places.
const PLACES: f32 = 3072.0;

/// Codes of two neighbours, as they are stored.
trait Codes: Pod {
    fn pack(codes: [u32; 2]) -> Self;
}

impl Codes for u8 {
    #[inline(always)]
    fn pack([even, odd]: [u32; 2]) -> u8 {
        (even & 15 | odd << 4) as u8
    }
}

impl Codes for u16 {
    #[inline(always)]
    fn pack([even, odd]: [u32; 2]) -> u16 {
        (even & 255 | odd << 8) as u16
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma",
    "x86_64+avx2+fma",
    "x86_64+sse4.1"
))]
fn quantize(params: &TileParams, b: &mut TileBuffers) {
    let fused = cfg!(target_arch = "aarch64") || target_cfg_f!(target_feature = "fma");
    let groups = params.groups as usize;
    let together = (SPAN / params.group_len.max(1) as usize).max(1);
    let mut sums = Sums([[[0.0; LANES / 4]; 2 * TOGETHER]; 4]);
    for first in (0..groups).step_by(together) {
        let last = (first + together).min(groups);
        if params.scaled == 0 {
            let ranges = b.ranges.as_chunks_mut::<2>().0[first..last].iter_mut().enumerate();
            for (i, range) in ranges {
                *range = group_range(params, &b.input, (first + i) as u32);
            }
            decode_ranges(params.input_dtype, &mut b.ranges.as_chunks_mut::<2>().0[first..last]);
            let ranges = &b.ranges[2 * first..2 * last];
            range_qparams(params, ranges, &mut b.scales[first..last], &mut b.zero_points[first..last]);
        }
        if params.bits == 8 {
            encode::<u16>(params, b, first..last, &mut sums, fused);
        } else {
            encode::<u8>(params, b, first..last, &mut sums, fused);
        }
    }
}

/// Codes and errors of some groups.
#[inline(always)]
fn encode<C: Codes>(
    params: &TileParams,
    b: &mut TileBuffers,
    groups: Range<usize>,
    sums: &mut Sums,
    fused: bool,
) {
    let f16 = |h: u32| flush(f16_to_f32(h));
    let f16 = |pair: u32| [f16(pair & 0xffff), f16(pair >> 16)];
    // below the normals every code is that of zero, whatever the scale
    let bf16 = |pair: u32| [pair << 16, pair & 0xffff_0000];
    let f32 = |pair: [u32; 2]| pair.map(flush);
    let input = std::mem::take(&mut b.input);
    match (params.input_dtype, params.scale_dtype) {
        (F32, _) => {
            encode_pairs::<false, C, _>(params, input.as_chunks::<2>().0, f32, b, groups, sums, fused)
        }
        (F16, F32) => encode_pairs::<false, C, _>(params, &input, f16, b, groups, sums, fused),
        (F16, _) => encode_pairs::<true, C, _>(params, &input, f16, b, groups, sums, fused),
        (_, F32) => encode_pairs::<false, C, _>(params, &input, bf16, b, groups, sums, fused),
        (_, _) => encode_pairs::<true, C, _>(params, &input, bf16, b, groups, sums, fused),
    }
    b.input = input;
}

#[inline(always)]
fn encode_pairs<const HALVES: bool, C: Codes, T: Copy + Default>(
    params: &TileParams,
    weights: &[T],
    decode: impl Fn(T) -> [u32; 2] + Copy,
    b: &mut TileBuffers,
    groups: Range<usize>,
    sums: &mut Sums,
    fused: bool,
) {
    // whole pairs, as rows and groups are whole runs of eight
    let [group_len, chunk_len] = [params.group_len, params.chunk_len].map(|n| n as usize / 2);
    let per_group = params.chunks_per_group as usize;
    let span = groups.start * group_len..groups.end * group_len;
    let out: &mut [C] = &mut bytemuck::cast_slice_mut(&mut b.output)[span.clone()];
    let qparams = b.scales[groups.clone()].iter().zip(&b.zero_points[groups.clone()]);
    let mut errors = b.errors[groups.start * per_group..groups.end * per_group].chunks_mut(TOGETHER);
    let weights = weights[span].chunks_exact(group_len);
    let mut coded = 0;
    for ((weights, out), (&scale, &zero_point)) in weights.zip(out.chunks_exact_mut(group_len)).zip(qparams) {
        let coder = Coder::new(params, scale, zero_point, fused);
        let mut at = 0;
        while at < group_len {
            let end = (at + chunk_len).min(group_len);
            sums.set(coded, coder.code::<HALVES, C, T>(&weights[at..end], decode, &mut out[at..end]));
            coded += 1;
            if coded == TOGETHER {
                sums.add_up(errors.next().unwrap_or_default());
                coded = 0;
            }
            at = end;
        }
    }
    if let Some(errors) = errors.next() {
        sums.add_up(errors);
    }
}

/// Chunks whose sums are added up together.
const TOGETHER: usize = 64;

/// Partial sums of chunks, of both kinds: their first quarters, their second ones, and so on, so that vectors hold parts
/// of several chunks.
#[repr(align(64))]
struct Sums([[[f32; LANES / 4]; 2 * TOGETHER]; 4]);

impl Sums {
    #[inline(always)]
    fn set(&mut self, chunk: usize, sums: [[f32; LANES]; 2]) {
        for (kind, sums) in sums.iter().enumerate() {
            for (quarters, part) in self.0.iter_mut().zip(sums.as_chunks().0) {
                quarters[2 * chunk + kind] = *part;
            }
        }
    }

    /// The sums of the first chunks.
    #[inline(always)]
    fn add_up(&self, errors: &mut [[f32; 2]]) {
        let [a, b, c, d] = self.0.each_ref().map(|quarters| quarters.as_flattened());
        let mut four = [0.0; LANES / 2 * TOGETHER];
        for i in 0..four.len() {
            four[i] = (a[i] + b[i]) + (c[i] + d[i]);
        }
        let mut sums = [0.0; 2 * TOGETHER];
        for (sum, [a, b, c, d]) in sums.iter_mut().zip(four.as_chunks().0) {
            *sum = (a + c) + (b + d);
        }
        errors.copy_from_slice(&sums.as_chunks().0[..errors.len()]);
    }
}

#[derive(Clone, Copy)]
struct Coder {
    scale: f32,
    inverse: f32,
    /// Added to a quotient: rounds it to its code as it is stored. (What is added to codes there is even: ties stay.)
    shift: f32,
    lowest: f32,
    highest: f32,
    /// Whether the machine multiplies and adds in one step.
    fused: bool,
}

impl Coder {
    #[inline(always)]
    fn new(params: &TileParams, scale: u32, zero_point: i32, fused: bool) -> Self {
        let stored = |code: i32| MAGIC + (code + params.code_offset) as f32;
        Coder {
            scale: f32::from_bits(scale),
            inverse: 1.0 / f32::from_bits(scale),
            shift: stored(zero_point),
            lowest: stored(params.qmin),
            highest: stored(params.qmax),
            fused,
        }
    }

    /// Codes pairs of weights, and returns the sums of [`super::error`], in parts.
    #[inline(always)]
    fn code<const HALVES: bool, C: Codes, T: Copy + Default>(
        &self,
        weights: &[T],
        decode: impl Fn(T) -> [u32; 2] + Copy,
        codes: &mut [C],
    ) -> [[f32; LANES]; 2] {
        let mut sums = [[0.0; LANES]; 2];
        let (long, rest) = weights.as_chunks::<{ 4 * LANES }>();
        let (code_long, code_rest) = codes.as_chunks_mut::<{ 4 * LANES }>();
        for (run, codes) in long.iter().zip(code_long) {
            for (run, codes) in run.as_chunks::<LANES>().0.iter().zip(codes.as_chunks_mut::<LANES>().0) {
                self.run::<HALVES, C, T>(run, decode, codes, &mut sums);
            }
        }
        let (runs, rest) = rest.as_chunks::<LANES>();
        let (code_runs, code_rest) = code_rest.as_chunks_mut::<LANES>();
        for (run, codes) in runs.iter().zip(code_runs) {
            self.run::<HALVES, C, T>(run, decode, codes, &mut sums);
        }
        if !rest.is_empty() {
            // zeros add nothing to the sums
            let (mut run, mut codes) = ([T::default(); LANES], [C::zeroed(); LANES]);
            run[..rest.len()].copy_from_slice(rest);
            self.run::<HALVES, C, T>(&run, decode, &mut codes, &mut sums);
            code_rest.copy_from_slice(&codes[..rest.len()]);
        }
        sums
    }

    /// Codes some pairs, and adds to the sums of squared quotients and errors.
    #[inline(always)]
    fn run<const HALVES: bool, C: Codes, T: Copy>(
        &self,
        weights: &[T; LANES],
        decode: impl Fn(T) -> [u32; 2],
        codes: &mut [C; LANES],
        [signal, noise]: &mut [[f32; LANES]; 2],
    ) {
        for i in 0..LANES {
            let [even, odd] = decode(weights[i]);
            let [even, odd] = [self.coded::<HALVES>(even), self.coded::<HALVES>(odd)];
            codes[i] = C::pack([even.0, odd.0]);
            for (_, quotient, error) in [even, odd] {
                signal[i] = self.square_added(quotient, signal[i]);
                noise[i] = self.square_added(error, noise[i]);
            }
        }
    }

    /// A weight's code (in the low bits), quotient and error.
    #[inline(always)]
    fn coded<const HALVES: bool>(&self, weight: u32) -> (u32, f32, f32) {
        let x = f32::from_bits(weight);
        let quotient = if HALVES { x * self.inverse } else { x / self.scale };
        // A quotient of two halves is half-way between codes or at least 2^-12 away from that: a product, which is
        // off by less than 2^-14, becomes half-way by rounding to 12 binary places if it was.
        let mut code =
            if HALVES { (quotient + PLACES) + (self.shift - PLACES) } else { quotient + self.shift };
        code = if code > self.lowest { code } else { self.lowest };
        code = if code < self.highest { code } else { self.highest };
        let error = quotient - (code - self.shift);
        (code.to_bits(), quotient, error)
    }

    /// Errors are outside the contract on bytes: one rounding or two, as the machine likes.
    #[inline(always)]
    fn square_added(&self, x: f32, sum: f32) -> f32 {
        if self.fused { x.mul_add(x, sum) } else { x * x + sum }
    }
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
                    let mut codes = [0; 512];
                    let pairs = weights.as_chunks::<2>().0;
                    Coder::new(&params, scale, z, true).code::<true, u16, _>(pairs, |x| x, &mut codes);
                    let codes: &[u8] = bytemuck::cast_slice(&codes);
                    assert!(expected.iter().zip(codes).all(|(&e, &c)| e == i32::from(c as i8)), "{scale:#x}");
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

    /// Machines that multiply and add in one step have the same sums as others, but for rounding.
    #[test]
    fn sums_of_errors_are_those_of_plain_arithmetic_on_every_machine() {
        let (params, scale) = (TileParams::default().with_grid(8, true, false), 0.01f32);
        let weights: Vec<u32> = (0..200).map(|i| ((i * i % 211) as f32 / 211.0 - 0.5).to_bits()).collect();
        let stated = weights.iter().fold([0.0; 2], |[signal, noise], &x| {
            let quotient = f64::from(f32::from_bits(x)) / f64::from(scale);
            let error = quotient - quotient.round_ties_even();
            [signal + quotient * quotient, noise + error * error]
        });
        for fused in [true, false] {
            let coder = Coder::new(&params, scale.to_bits(), 0, fused);
            let sums = coder
                .code::<false, u16, _>(weights.as_chunks::<2>().0, |x| x, &mut [0; 100])
                .map(|parts| parts.into_iter().map(f64::from).sum::<f64>());
            let same = sums.iter().zip(&stated).all(|(a, b)| (a - b).abs() <= 1e-3 * b);
            assert!(same, "{sums:?}, not {stated:?}");
        }
    }
}
