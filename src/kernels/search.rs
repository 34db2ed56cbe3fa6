//! Squared error of every coarse candidate for a scale on every chunk, in 64-bit integers
//! (`counts[chunk][candidate] = [low, high]`); [`super::refine`] then tries what lies around the best.
//!
//! Candidate 0 is the whole range. Symmetric ones divide absmax by c: 7, 7.5, … 14 at 4 bits, 127, 131, … 159 at 8, with
//! both signs if the tile says so. Asymmetric ones shrink the range to n/64: 60, 56, … 40.
//!
//! A group is normalised to integers of 13 bits (15 at 8 bits) and a candidate's scale to a step on the same grid (with 4
//! more bits at 8); codes and reconstructions are products of integers, at 4 bits of 16 bits, so the choice is the same on
//! every device. A step that is out of all proportion (where f16 scales are coarse) gets a sum that is never the best.
//! Groups under 2⁻¹⁰⁰ (or not finite) get zeros, and with them candidate 0, as [`super::qparams`] takes the first of equals.
//! Twin: `shaders/search.wgsl`.

use super::{Binding, CHUNK, Kernel, TileBuffers, TileParams, arithmetic::*, bits::*};
use multiversion::multiversion;
use std::ops::Range;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "search",
    wgsl: include_str!("../../shaders/search.wgsl"),
    cpu: search,
    threads: |p| p.chunks * p.coarse,
    team: false,
    touches: |p| {
        vec![
            (Binding::Input, p.float_words(p.input_dtype) as usize),
            (Binding::Ranges, 2 * p.groups as usize),
            (Binding::Counts, 2 * (p.chunks * p.candidates) as usize),
        ]
    },
};

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn search(params: &TileParams, b: &mut TileBuffers) {
    let mut normal = [0; CHUNK as usize];
    for group in 0..params.groups {
        try_candidates(params, b, group, 0, 0..params.coarse, &mut normal);
    }
}

/// The number, as [`candidate`] knows it, of candidate `i` of a tile; of a fine one, beside coarse number `best`.
#[inline(always)]
pub(super) fn number_of(params: &TileParams, i: u32, best: u32) -> u32 {
    if i < params.coarse.max(1) {
        if params.symmetric == 0 {
            return 4 * i;
        }
        let j = i.wrapping_sub(1);
        let (place, sign) = if params.both_signs == 1 { (j >> 1, j & 1) } else { (j, 0) };
        return if i == 0 { 0 } else { 1 + 2 * (4 * place + 3) + sign };
    }
    let aside = [-3, -2, -1, 1, 2, 3][(i - params.coarse) as usize];
    if params.symmetric == 0 {
        return (best as i32 + aside).max(0) as u32;
    }
    // around the whole range: beside 7.5 or 127
    let middle = if best > 0 { best } else { 1 + 2 * if params.bits == 4 { 7 } else { 3 } };
    (middle as i32 + 2 * aside) as u32
}

/// Which of the first `count` candidates has the smallest sum in a group, the first of equals; 0 if there are none.
#[inline(always)]
pub(super) fn best_of(params: &TileParams, counts: &[u32], group: usize, count: u32) -> u32 {
    let [tallies, candidates] = [params.tallies, params.candidates].map(|n| n as usize);
    let mut best = (u64::MAX, 0);
    for i in 0..count {
        let sum = |table: usize| {
            let at = 2 * ((group * tallies + table) * candidates + i as usize);
            u64::from(counts[at]) | u64::from(counts[at + 1]) << 32
        };
        let sum = (0..tallies).map(sum).fold(0, u64::wrapping_add);
        if sum < best.0 {
            best = (sum, i);
        }
    }
    best.1
}

/// Most candidates that are tried at once: a whole number of vectors.
const TRIALS: usize = 32;

/// What codes of some candidates are made and decoded with.
struct Trials {
    /// In units of the normalised weights; at 8 bits in 1/16 of one. 0 if out of proportion.
    steps: [i32; TRIALS],
    /// 2^23 (2^26 at 8 bits) / step.
    inverses: [i32; TRIALS],
    /// Bounds of a code without its zero point, and with the sign of its scale.
    lowest: [i32; TRIALS],
    highest: [i32; TRIALS],
}

impl Trials {
    #[inline(always)]
    fn new(params: &TileParams, low: u32, high: u32, numbers: &[u32; TRIALS]) -> Self {
        let (steps, inverses, lowest, highest) = ([0; TRIALS], [0; TRIALS], [0; TRIALS], [0; TRIALS]);
        let mut trials = Trials { steps, inverses, lowest, highest };
        let four = params.bits == 4;
        let unit = div_rn(if four { 0x4600_0000 } else { 0x4900_0000 }, low.max(high)); // 2^13 or 2^19
        let whole = if four { 0x4b00_0000 } else { 0x4c80_0000 }; // 2^23 or 2^26
        let bounds = if four { 257..2048 } else { 1088..32768 };
        for (i, &number) in numbers.iter().enumerate() {
            let tried = candidate(params, low, high, number);
            let step = round_small(f32::from_bits(multiply(tried.scale & MAGNITUDE, unit).min(0x4780_0000)));
            let fits = bounds.contains(&step);
            let inverse = f32::from_bits(div_rn(whole, (step as f32).to_bits()).min(0x4780_0000));
            trials.steps[i] = if fits { step } else { 0 };
            trials.inverses[i] = if fits { round_small(inverse) } else { 0 };
            let flip = -i32::from(tried.scale >= SIGN);
            let [a, b] = [params.qmin - tried.zero_point, params.qmax - tried.zero_point].map(|q| (q ^ flip) - flip);
            trials.lowest[i] = a.min(b);
            trials.highest[i] = a.max(b);
        }
        trials
    }
}

/// Sums of a group's candidates, `tried` of them, on each of its chunks.
#[inline(always)]
pub(super) fn try_candidates(
    params: &TileParams,
    b: &mut TileBuffers,
    group: u32,
    best: u32,
    tried: Range<u32>,
    normal: &mut [i16; CHUNK as usize],
) {
    let [low, high] = [0, 1].map(|side| widened(b.ranges[2 * group as usize + side]));
    let absmax = low.max(high);
    if !(MIN_SEARCH..INFINITY).contains(&absmax) {
        return; // sums start as zeros
    }
    let mut numbers = [0; TRIALS];
    for (number, i) in numbers.iter_mut().zip(tried.clone()) {
        *number = number_of(params, i, best);
    }
    // with constants in the place of these two the loop over candidates becomes vector code
    let with = |scale_dtype, symmetric| {
        Trials::new(&TileParams { scale_dtype, symmetric, ..*params }, low, high, &numbers)
    };
    let trials = match (params.scale_dtype, params.symmetric) {
        (BF16, 1) => with(BF16, 1),
        (BF16, _) => with(BF16, 0),
        (F16, 1) => with(F16, 1),
        (F16, _) => with(F16, 0),
        (_, 1) => with(F32, 1),
        (_, _) => with(F32, 0),
    };
    let four = params.bits == 4;
    let unit = f32::from_bits(div_rn(if four { 0x4600_0000 } else { 0x4700_0000 }, absmax)); // 2^13 or 2^15
    for chunk in 0..params.chunks_per_group {
        let span = params.chunk_of(group, chunk);
        let length = span.len();
        normalise(params, &b.input, span, unit, &mut normal[..length]);
        let at = (group * params.chunks_per_group + chunk) * params.candidates + tried.start;
        let sums = &mut b.counts[2 * at as usize..][..2 * tried.len()];
        for (i, sum) in sums.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let found = if trials.steps[i] == 0 {
                (length as u64) << 30
            } else if four {
                squared_error_16(&normal[..length], &trials, i)
            } else {
                squared_error(&normal[..length], &trials, i)
            };
            *sum = [found as u32, (found >> 32) as u32];
        }
    }
}

#[inline(always)]
fn normalise(params: &TileParams, input: &[u32], span: Range<usize>, unit: f32, normal: &mut [i16]) {
    let halves: &[u16] = bytemuck::cast_slice(input);
    // at 8 bits the largest weights are 2^15, one more than there is room for
    let scaled = |x: u32| round_small(f32::from_bits(flush(x)) * unit).min(32767) as i16;
    match params.input_dtype {
        F32 => normal.iter_mut().zip(&input[span]).for_each(|(n, &x)| *n = scaled(x)),
        F16 => normal.iter_mut().zip(&halves[span]).for_each(|(n, &h)| *n = scaled(f16_to_f32(h.into()))),
        _ => normal.iter_mut().zip(&halves[span]).for_each(|(n, &h)| *n = scaled(u32::from(h) << 16)),
    }
}

/// Weights whose squares fit 32 bits together: each differs by less than 2^13.
const BLOCK: usize = 64;

/// The sum at 4 bits: every number fits 16 bits, and every operation is one that vector units have for them.
#[inline(always)]
fn squared_error_16(normal: &[i16], trials: &Trials, i: usize) -> u64 {
    let [step, inverse] = [trials.steps[i] as i16, trials.inverses[i] as i16];
    let [lowest, highest] = [trials.lowest[i] as i16, trials.highest[i] as i16];
    let square = |x: i16| {
        let quotient = ((i32::from(x) * i32::from(inverse)) >> 16) as i16; // in 1/128
        let code = (quotient.wrapping_add(64) >> 7).max(lowest).min(highest);
        let difference = i32::from(x.wrapping_sub(code.wrapping_mul(step)));
        difference * difference
    };
    let (blocks, rest) = normal.as_chunks::<BLOCK>();
    let mut sum = 0u64;
    for block in blocks {
        let part = block.iter().fold(0i32, |sum, &x| sum.wrapping_add(square(x)));
        sum += u64::from(part as u32);
    }
    sum + rest.iter().map(|&x| square(x) as u64).sum::<u64>()
}

/// The sum at any number of bits.
#[inline(always)]
fn squared_error(normal: &[i16], trials: &Trials, i: usize) -> u64 {
    let [step, inverse, lowest, highest] =
        [&trials.steps, &trials.inverses, &trials.lowest, &trials.highest].map(|list| list[i]);
    let square = |x: i16| {
        let code = ((((i32::from(x) * inverse) >> 16) + 32) >> 6).max(lowest).min(highest);
        let difference = i32::from(x) - ((code * step + 8) >> 4);
        (difference * difference) as u32
    };
    normal.iter().map(|&x| u64::from(square(x))).sum()
}
