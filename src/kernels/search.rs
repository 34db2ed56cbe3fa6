//! Squared error of every coarse candidate for a scale on every chunk, in 64-bit integers
//! (`counts[chunk][candidate] = [low, high]`); [`super::refine`] then tries what lies around the best.
//!
//! Candidate 0 is the whole range. Symmetric ones divide absmax by c: 7, 8, … 14 at 4 bits (… 11 for groups of at most 256
//! weights, whose best c lies lower), 127, 131, … 159 at 8. If the tile allows negative scales the lowest code, which has
//! no counterpart, goes to the side that reaches further: the other sign is better in few groups, and by little (0.006 dB
//! of all at most, for weights of several distributions). Asymmetric ones shrink the range to n/64: 60, 56, … 40.
//!
//! A group is normalised to integers of 13 bits (15 at 8 bits) and a candidate's scale to a step on the same grid (with 4
//! more bits at 8); codes and reconstructions are products of integers, at 4 bits of 16 bits, so the choice is the same on
//! every device. A step that is out of all proportion (where f16 scales are coarse) gets a sum that is never the best.
//! Groups under 2⁻¹⁰⁰ (or not finite) get zeros, and with them candidate 0, as [`super::qparams`] takes the first of equals.
//! Twin: `shaders/search.wgsl`, with `shaders/trials.wgsl`.

use super::{Binding, CHUNK, Kernel, TileBuffers, TileParams, arithmetic::*, bits::*};
use multiversion::multiversion;
use std::ops::Range;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "search",
    wgsl: concat!(include_str!("../../shaders/search.wgsl"), include_str!("../../shaders/trials.wgsl")),
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
    try_candidates(params, b, 0..params.coarse);
}

/// The sign bit of a group's scale: set if the lowest code is for its largest weights.
#[inline(always)]
fn sign_of(params: &TileParams, ranges: &[u32], group: usize) -> u32 {
    let [low, high] = [0, 1].map(|side| widened(ranges[2 * group + side]));
    (params.both_signs == 1 && high > low).into()
}

/// The number, as [`candidate`] knows it, of coarse candidate `i` of a tile.
#[inline(always)]
fn coarse_number(params: &TileParams, i: u32, sign: u32) -> u32 {
    if params.symmetric == 0 {
        return 4 * i;
    }
    if i == 0 {
        return 0;
    }
    let place = if params.bits == 4 { 8 * (i - 1) + 6 } else { 4 * (i - 1) + 3 };
    1 + 2 * place + sign
}

/// The number of fine candidate `f`: so many steps from the best coarse one, `best`, towards the better of its
/// neighbours.
#[inline(always)]
fn fine_number(params: &TileParams, sums: &[u64], best: u32, f: u32, sign: u32) -> u32 {
    let whole = params.symmetric == 1 && best == 0;
    // the whole range, at 7.5, lies between the first two; at 127.5 before the second
    let (below, above) = if whole { (1, 2) } else { (best.wrapping_sub(1), best + 1) };
    let first = params.symmetric;
    let sum = |i: u32| if (first..params.coarse).contains(&i) { sums[i as usize] } else { u64::MAX };
    let down = sum(below) < sum(above) && !(whole && params.bits == 8);
    let steps = if down { -1 - f as i32 } else { 1 + f as i32 };
    let number = coarse_number(params, best, sign) as i32;
    let sign = sign as i32;
    match (params.symmetric, params.bits) {
        (0, _) => (number + steps) as u32,
        (_, 4) => (if whole { 1 + 2 * 10 + sign } else { number } + 4 * steps) as u32,
        (_, _) => (if whole { 1 + 2 * 3 + sign } else { number } + 2 * steps) as u32,
    }
}

/// Error sums of the first `count` candidates of a group, over all its chunks.
#[inline(always)]
fn sums_of(params: &TileParams, counts: &[u32], group: usize, count: u32) -> [u64; MOST] {
    let [tallies, candidates, count] = [params.tallies, params.candidates, count].map(|n| n as usize);
    let tables = &counts[2 * group * tallies * candidates..][..2 * tallies * candidates];
    let mut sums = [0u64; MOST];
    for table in tables.chunks_exact((2 * candidates).max(1)) {
        for (sum, words) in sums[..count].iter_mut().zip(table.as_chunks::<2>().0) {
            *sum = sum.wrapping_add(u64::from(words[0]) | u64::from(words[1]) << 32);
        }
    }
    sums
}

/// The first of the smallest; 0 if there are none.
#[inline(always)]
fn least(sums: &[u64]) -> u32 {
    let least = sums.iter().fold(u64::MAX, |least, &sum| least.min(sum));
    sums.iter().position(|&sum| sum == least).unwrap_or(0) as u32
}

/// The number of the candidate with the smallest sum in a group, the first of equals; 0 if there are none.
#[inline(always)]
pub(super) fn best_number(params: &TileParams, ranges: &[u32], counts: &[u32], group: usize) -> u32 {
    let sums = sums_of(params, counts, group, params.candidates);
    let sign = sign_of(params, ranges, group);
    let best = least(&sums[..params.candidates as usize]);
    match best.checked_sub(params.coarse) {
        Some(f) => fine_number(params, &sums, least(&sums[..params.coarse as usize]), f, sign),
        None => coarse_number(params, best, sign),
    }
}

/// Most candidates that there are.
const MOST: usize = 16;
/// Candidates that are prepared together, of as many groups as they are enough for: a whole number of vectors.
const TRIALS: usize = 64;
/// Candidates that are prepared at a time.
const LANES: usize = 16;

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

/// Which candidates to prepare.
struct Tried {
    numbers: [u32; TRIALS],
    /// Bounds of their groups.
    low: [u32; TRIALS],
    high: [u32; TRIALS],
}

impl Trials {
    #[inline(always)]
    fn of<const SCALE: u32, const SYMMETRIC: u32>(params: &TileParams, tried: &Tried, count: usize) -> Self {
        let params = &TileParams { scale_dtype: SCALE, symmetric: SYMMETRIC, ..*params };
        let (steps, inverses, lowest, highest) = ([0; TRIALS], [0; TRIALS], [0; TRIALS], [0; TRIALS]);
        let mut trials = Trials { steps, inverses, lowest, highest };
        let four = params.bits == 4;
        let one = if four { 0x4600_0000 } else { 0x4900_0000 }; // 2^13 or 2^19
        let whole = if four { 0x4b00_0000 } else { 0x4c80_0000 }; // 2^23 or 2^26
        let bounds = if four { 257..2048 } else { 1088..32768 };
        let capped = |x: u32| round_small(f32::from_bits(x.min(0x4780_0000))); // 2^16
        for from in (0..count).step_by(LANES) {
            // vectors of a fixed length
            let at = from..from + LANES;
            let [mut steps, mut inverses, mut lowest, mut highest] = [[0; LANES]; 4];
            let [numbers, lows, highs] = [&tried.numbers, &tried.low, &tried.high].map(|list| {
                let mut lanes = [0; LANES];
                lanes.copy_from_slice(&list[at.clone()]);
                lanes
            });
            for i in 0..LANES {
                let (low, high) = (lows[i], highs[i]);
                let unit = div_rn(one, low.max(high));
                // codes reach over more than half of the range, so that differences stay below 2^13
                let [low_f, high_f] = [low, high].map(f32::from_bits);
                let both = if params.symmetric == 1 { 2.0 * low_f.max(high_f) } else { low_f + high_f };
                let range = if four { capped(multiply(both.to_bits(), unit)) } else { 0 };
                let tried = candidate(params, low, high, numbers[i]);
                let step = capped(multiply(tried.scale & MAGNITUDE, unit));
                let fits = bounds.contains(&step) & (29 * step >= range);
                steps[i] = if fits { step } else { 0 };
                let inverse = capped(div_rn(whole, (step as f32).to_bits()));
                inverses[i] = if fits { inverse } else { 0 };
                let flip = -i32::from(tried.scale >= SIGN);
                let a = ((params.qmin - tried.zero_point) ^ flip) - flip;
                let b = ((params.qmax - tried.zero_point) ^ flip) - flip;
                lowest[i] = a.min(b);
                highest[i] = a.max(b);
            }
            trials.steps[at.clone()].copy_from_slice(&steps);
            trials.inverses[at.clone()].copy_from_slice(&inverses);
            trials.lowest[at.clone()].copy_from_slice(&lowest);
            trials.highest[at].copy_from_slice(&highest);
        }
        trials
    }
}

/// Sums of some candidates of every group, on each of its chunks: coarse ones, or the fine ones.
#[inline(always)]
pub(super) fn try_candidates(params: &TileParams, b: &mut TileBuffers, candidates: Range<u32>) {
    let count = candidates.len();
    let together = TRIALS / count.max(1);
    let mut normal = [0; CHUNK as usize];
    let mut tried = Tried { numbers: [0; TRIALS], low: [0; TRIALS], high: [0; TRIALS] };
    for first in (0..params.groups).step_by(together) {
        let groups = first..(first + together as u32).min(params.groups);
        for (group, at) in groups.clone().zip((0..).step_by(count)) {
            let [mut low, mut high] = [0, 1].map(|side| widened(b.ranges[2 * group as usize + side]));
            if !(MIN_SEARCH..INFINITY).contains(&low.max(high)) {
                (low, high) = (0x3f80_0000, 0x3f80_0000); // left out below
            }
            let sign = sign_of(params, &b.ranges, group as usize);
            let numbers = &mut tried.numbers[at..at + count];
            if candidates.start == 0 {
                (0..).zip(numbers).for_each(|(i, number)| *number = coarse_number(params, i, sign));
            } else {
                let sums = sums_of(params, &b.counts, group as usize, params.coarse);
                let best = least(&sums[..params.coarse as usize]);
                (0..)
                    .zip(numbers)
                    .for_each(|(f, number)| *number = fine_number(params, &sums, best, f, sign));
            }
            tried.low[at..at + count].fill(low);
            tried.high[at..at + count].fill(high);
        }
        let lanes = groups.len() * count;
        // with constants in the place of these two the loop over candidates becomes vector code
        let trials = match (params.scale_dtype, params.symmetric) {
            (BF16, 1) => Trials::of::<BF16, 1>(params, &tried, lanes),
            (BF16, _) => Trials::of::<BF16, 0>(params, &tried, lanes),
            (F16, 1) => Trials::of::<F16, 1>(params, &tried, lanes),
            (F16, _) => Trials::of::<F16, 0>(params, &tried, lanes),
            (_, 1) => Trials::of::<F32, 1>(params, &tried, lanes),
            (_, _) => Trials::of::<F32, 0>(params, &tried, lanes),
        };
        for (group, at) in groups.zip((0..).step_by(count)) {
            evaluate(params, b, group, &trials, at..at + count, candidates.start, &mut normal);
        }
    }
}

/// Sums of a group's candidates, those of `lanes`, on each of its chunks.
#[inline(always)]
fn evaluate(
    params: &TileParams,
    b: &mut TileBuffers,
    group: u32,
    trials: &Trials,
    lanes: Range<usize>,
    first: u32,
    normal: &mut [i16; CHUNK as usize],
) {
    let [low, high] = [0, 1].map(|side| widened(b.ranges[2 * group as usize + side]));
    let absmax = low.max(high);
    if !(MIN_SEARCH..INFINITY).contains(&absmax) {
        return; // sums start as zeros
    }
    let four = params.bits == 4;
    let unit = f32::from_bits(div_rn(if four { 0x4600_0000 } else { 0x4700_0000 }, absmax)); // 2^13 or 2^15
    for chunk in 0..params.chunks_per_group {
        let span = params.chunk_of(group, chunk);
        let length = span.len();
        normalise(params, &b.input, span, unit, &mut normal[..length]);
        let at = (group * params.chunks_per_group + chunk) * params.candidates + first;
        let sums = &mut b.counts[2 * at as usize..][..2 * lanes.len()];
        let sums = sums.as_chunks_mut::<2>().0;
        for (at, sum) in lanes.clone().zip(sums) {
            let found = if trials.steps[at] == 0 {
                (length as u64) << 30 // what does not fit is never the best
            } else if four {
                squared_error_16(&normal[..length], trials, at)
            } else {
                squared_error(&normal[..length], trials, at)
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

/// Weights whose squares fit 32 bits together: each differs by less than 2^12.5.
const BLOCK: usize = 128;

/// The sum at 4 bits: every number fits 16 bits, and every operation is one that vector units have for them.
#[inline(always)]
fn squared_error_16(normal: &[i16], trials: &Trials, i: usize) -> u64 {
    let trial = [&trials.steps, &trials.inverses, &trials.lowest, &trials.highest].map(|list| list[i] as i16);
    let (blocks, rest) = normal.as_chunks::<BLOCK>();
    let whole: u64 = blocks.iter().map(|block| u64::from(block_error(block, trial))).sum();
    whole + u64::from(block_error(rest, trial))
}

#[inline(always)]
fn block_error(block: &[i16], [step, inverse, lowest, highest]: [i16; 4]) -> u32 {
    let mut sum = 0i32;
    for &x in block {
        let quotient = ((i32::from(x) * i32::from(inverse)) >> 16) as i16; // in 1/128
        let code = (quotient.wrapping_add(64) >> 7).max(lowest).min(highest);
        let difference = i32::from(x.wrapping_sub(code.wrapping_mul(step)));
        sum = sum.wrapping_add(difference * difference);
    }
    sum as u32
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a group's absmax, or its range, is divided by for a candidate.
    fn divisor(params: &TileParams, number: u32) -> f32 {
        let half = 0.5f32.to_bits();
        let reach = if params.symmetric == 1 { 0.5 } else { 1.0 };
        reach / f32::from_bits(candidate(params, half, half, number).scale)
    }

    fn divisors(params: &TileParams, sign: u32) -> Vec<f32> {
        (0..params.coarse).map(|i| divisor(params, coarse_number(params, i, sign))).collect()
    }

    #[track_caller]
    fn same(found: Vec<f32>, stated: Vec<f32>) {
        assert_eq!(found.len(), stated.len(), "{found:?}, {stated:?}");
        let off = found.iter().zip(&stated).find(|(a, b)| (*a - *b).abs() > 1e-5 * b.abs());
        assert_eq!(off, None, "{found:?}, {stated:?}");
    }

    #[test]
    fn coarse_candidates_are_those_of_the_contract() {
        let usual = TileParams { scale_dtype: F32, ..Default::default() };
        for (bits, group_len, whole, cs) in [
            (4, 256, 7.5, (7..=11).step_by(1)),
            (4, 257, 7.5, (7..=14).step_by(1)),
            (8, 256, 127.5, (127..=159).step_by(4)),
        ] {
            let params = usual.with_grid(bits, true, true).with_search(true, group_len);
            for sign in [0, 1] {
                let signed = |c: u8| f32::from(c) * [1.0, -1.0][sign as usize];
                same(divisors(&params, sign), [whole].into_iter().chain(cs.clone().map(signed)).collect());
            }
        }
        for bits in [4, 8] {
            let params = usual.with_grid(bits, false, true).with_search(true, 128);
            let codes = (params.qmax - params.qmin) as f32;
            let shrunk = (40..=64u8).rev().step_by(4).map(|n| codes * 64.0 / f32::from(n));
            same(divisors(&params, 0), shrunk.collect());
        }
    }

    #[test]
    fn fine_candidates_lie_towards_the_better_neighbour() {
        for (bits, symmetric) in [(4, true), (8, true), (4, false), (8, false)] {
            let params = TileParams { scale_dtype: F32, ..Default::default() };
            let params = params.with_grid(bits, symmetric, true).with_search(true, 128);
            let coarse = params.symmetric..params.coarse;
            for (best, better) in coarse.clone().flat_map(|i| [(i, i.wrapping_sub(1)), (i, i + 1)]) {
                if !coarse.contains(&better) {
                    continue;
                }
                let mut sums = [2; MOST];
                (sums[best as usize], sums[better as usize]) = (0, 1);
                let [from, to] = [best, better].map(|i| divisor(&params, coarse_number(&params, i, 0)));
                for f in 0..params.candidates - params.coarse {
                    let found = divisor(&params, fine_number(&params, &sums, best, f, 0));
                    let way = (found - from) / (to - from);
                    assert!(0.0 < way && way < 1.0, "int{bits}: {found} for {from} and {to}");
                }
            }
        }
    }

    #[test]
    fn sums_are_those_of_all_chunks_of_a_group() {
        let params = TileParams { tallies: 3, candidates: 2, ..Default::default() };
        // of two groups: the low word of each sum, and a high word
        let counts: Vec<u32> = (0..12).flat_map(|n| [1 << n, n]).collect();
        let stated = |n: u64| (0..3).map(|chunk| (1 << (n + 2 * chunk)) | (n + 2 * chunk) << 32).sum::<u64>();
        for group in 0..2 {
            let sums = sums_of(&params, &counts, group, 2);
            assert_eq!(sums[..2], [stated(6 * group as u64), stated(6 * group as u64 + 1)]);
        }
    }
}
