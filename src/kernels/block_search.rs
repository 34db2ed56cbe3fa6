//! Step and minimum of every group of a Q4_K or Q6_K block, before they are rounded: the best of 16 fits.
//!
//! A group is normalised to integers of 12 bits. Every try spreads its range over another number of codes (Q6_K: with
//! either sign), takes the line through (code, weight) by least squares, and is judged by the squared error of weights
//! that are coded by this line. All of it in integers, so that the choice is the same on every device; the first of equals
//! is taken. Groups whose absmax lies below 2⁻¹⁰⁰ get zeros, those from 2¹⁰⁰ a step that no f16 holds.
//!
//! `scales[4 · groups + g] = step · 2²⁰`, `scales[5 · groups + g] = low · 2²⁰`, for decoding by `code · step − low`; low is
//! not negative, and 0 for Q6_K, whose step may be negative. Twin: `shaders/block_search.wgsl`.

use super::{Binding, Kernel, TileBuffers, TileParams, arithmetic::*, bits::*};
use multiversion::multiversion;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "block_search",
    wgsl: include_str!("../../shaders/block_search.wgsl"),
    cpu: block_search,
    threads: |p| p.groups,
    team: false,
    touches: |p| {
        vec![
            (Binding::Input, p.float_words(p.input_dtype) as usize),
            (Binding::Ranges, 2 * p.groups as usize),
            (Binding::Scales, 6 * p.groups as usize),
        ]
    },
};

/// A value for every try: loops over them become vector instructions.
pub(super) type Tries<T> = [T; TRIES as usize];

/// The steps that were tried: the range is spread over so many codes.
#[inline(always)]
fn reach<const BLOCK: u32>(i: u32) -> f32 {
    if BLOCK == Q4_K { (52 + i) as f32 * 0.25 } else { (119 + (i >> 1) * 2) as f32 * 0.25 }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn block_search(params: &TileParams, b: &mut TileBuffers) {
    if params.block == Q4_K {
        search::<Q4_K, 32>(params, b);
    } else {
        search::<Q6_K, 16>(params, b);
    }
}

#[inline(always)]
fn search<const BLOCK: u32, const N: usize>(params: &TileParams, b: &mut TileBuffers) {
    let groups = params.groups as usize;
    for group in 0..groups {
        let absmax = widened(b.ranges[2 * group]).max(widened(b.ranges[2 * group + 1]));
        let (mut step, mut low) = (0, 0);
        if (MIN_SEARCH..MAX_BLOCK).contains(&absmax) {
            let normal = normalized::<N>(params, &b.input, group, absmax);
            (step, low) = best_fit::<BLOCK, N>(params, &normal);
        }
        let above = absmax >= MAX_BLOCK;
        b.scales[4 * groups + group] =
            if above { 0x7f00_0000 } else { multiply((step as f32).to_bits(), absmax) };
        b.scales[5 * groups + group] = if above { 0 } else { multiply((low as f32).to_bits(), absmax) };
    }
}

/// The group, scaled to [-4096, 4096].
#[inline(always)]
pub(super) fn normalized<const N: usize>(
    params: &TileParams,
    input: &[u32],
    group: usize,
    absmax: u32,
) -> [i32; N] {
    let fine = f32::from_bits(div_rn(0x4580_0000, absmax)); // 2^12 / absmax
    let mut weights = [0; N];
    load_weights(params, input, group * N, &mut weights);
    weights.map(|x| round_small(f32::from_bits(x) * fine))
}

#[inline(always)]
fn best_fit<const BLOCK: u32, const N: usize>(params: &TileParams, normal: &[i32; N]) -> (i32, i32) {
    let (mut bottom, mut top) = (0, -4096);
    for &x in normal {
        bottom = bottom.max(-x);
        top = top.max(x);
    }
    if BLOCK == Q6_K {
        (bottom, top) = (0, 4096);
    }
    if top + bottom == 0 {
        return (0, bottom << 8); // of equal weights below zero, all codes are 0
    }
    let (steps, lows) = fits::<BLOCK, N>(params, normal, bottom, top);
    let errors = errors(params, normal, &steps, &lows);
    let mut best = (0, bottom << 8);
    let mut least = u32::MAX;
    for i in 0..TRIES as usize {
        if steps[i] != 0 && errors[i] < least {
            least = errors[i];
            best = (steps[i], lows[i]);
        }
    }
    best
}

/// The straight line through (code, weight), by least squares, for codes that the reach of each try gives.
#[inline(always)]
fn fits<const BLOCK: u32, const N: usize>(
    params: &TileParams,
    normal: &[i32; N],
    bottom: i32,
    top: i32,
) -> (Tries<i32>, Tries<i32>) {
    let n = N as i32;
    let flips: Tries<i32> = std::array::from_fn(|i| -i32::from(BLOCK == Q6_K && i & 1 == 1));
    let range = (top + bottom) as f32;
    let inverses: Tries<f32> = std::array::from_fn(|i| reach::<BLOCK>(i as u32) / range);
    let mut xs = 0;
    let (mut codes, mut squares, mut products) =
        ([0; TRIES as usize], [0; TRIES as usize], [0; TRIES as usize]);
    for &x in normal {
        xs += x + bottom;
        for i in 0..TRIES as usize {
            let x = ((x ^ flips[i]) - flips[i]) + bottom;
            let code = round_small(x as f32 * inverses[i]).clamp(params.qmin, params.qmax);
            codes[i] += code;
            squares[i] += code * code;
            products[i] += x * code;
        }
    }
    let (mut steps, mut lows) = ([0; TRIES as usize], [0; TRIES as usize]);
    for i in 0..TRIES as usize {
        let (codes, squares, products) = (codes[i], squares[i], products[i]);
        let quotient = |a: i32, b: i32| fixed_quotient(a.max(0), b.max(1));
        if BLOCK == Q6_K {
            steps[i] = (quotient(products, squares) ^ flips[i]) - flips[i];
            continue;
        }
        steps[i] = quotient(n * products - xs * codes, n * squares - codes * codes);
        lows[i] = (bottom << 8) - (((xs << 8) - steps[i] * codes + 16) >> 5);
        if lows[i] < 0 {
            (steps[i], lows[i]) = (quotient(products - bottom * codes, squares), 0);
        }
    }
    (steps, lows)
}

/// Squared error of the group for every pair of step and low.
#[inline(always)]
pub(super) fn errors(
    params: &TileParams,
    normal: &[i32],
    steps: &Tries<i32>,
    lows: &Tries<i32>,
) -> Tries<u32> {
    let inverses = steps.map(|step| if step == 0 { 0.0 } else { 1.0 / step as f32 });
    let mut errors = [0; TRIES as usize];
    for &x in normal {
        for i in 0..TRIES as usize {
            errors[i] += code_error(params, x, steps[i], lows[i], inverses[i]);
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::{super::blocks::tests::quantized, *};
    use crate::{block::Block, kernels::cases::data, tensor::Float};

    /// Of equals the first is taken: the order is the same in both twins.
    #[test]
    fn steps_of_either_sign_take_turns() {
        let params = TileParams::default().with_blocks(Block::Q6_K, 256);
        let normal = std::array::from_fn(|i| 4096 - 400 * i as i32);
        let (steps, lows) = fits::<Q6_K, 16>(&params, &normal, 0, 4096);
        let signs: Vec<i32> = steps.iter().map(|step| step.signum()).collect();
        assert_eq!((signs, lows), ([1, -1].repeat(TRIES as usize / 2), [0; TRIES as usize]));
    }

    /// Where a line would begin above zero, it goes through zero, also for weights of which some lie below.
    #[test]
    fn lines_that_would_begin_above_zero_begin_there() {
        let params = TileParams::default().with_blocks(Block::Q4_K, 256);
        let mut through_zero = 0;
        for most in (1000..4000).step_by(50) {
            let normal: [i32; 32] = std::array::from_fn(|i| [most, -20, 4096][i.saturating_sub(29)]);
            let (steps, lows) = fits::<Q4_K, 32>(&params, &normal, 20, 4096);
            for i in (0..TRIES as usize).filter(|&i| lows[i] == 0) {
                let code = |x: i32| ((x + 20) as f32 * (reach::<Q4_K>(i as u32) / 4116.0)).round_ties_even();
                let codes = normal.map(|x| (f64::from(x), f64::from(code(x).clamp(0.0, 15.0))));
                let [products, squares] =
                    codes.iter().fold([0.0; 2], |[p, s], (x, c)| [p + x * c, s + c * c]);
                assert!((f64::from(steps[i]) - 256.0 * products / squares).abs() <= 1.0, "try {i} of {most}");
                through_zero += 1;
            }
        }
        assert!(through_zero > 0);
    }

    /// The lines that the search found, and the plain ones that spread the range over all codes.
    #[test]
    fn fits_are_no_worse_than_the_plain_range() {
        for (block, codes) in [(Block::Q4_K, 0.0..=15.0), (Block::Q6_K, -32.0..=31.0)] {
            for kind in ["gaussian", "positive", "ties", "extremes"] {
                let input = data(kind, 2048, Float::BF16, 3);
                let weights: Vec<f64> =
                    input.chunks(2).map(|bytes| f64::from(Float::BF16.decode(bytes))).collect();
                let (buffers, _) = quantized(block, Float::BF16, &input);
                let (mut total, mut plain_total) = (0.0, 0.0);
                let groups = 2048 / block.group_len();
                for (g, weights) in weights.chunks(block.group_len()).enumerate() {
                    let noise = |step: f64, low: f64| -> f64 {
                        let code = |x: f64| ((x + low) / step).round().clamp(*codes.start(), *codes.end());
                        weights.iter().map(|&x| (x - (code(x) * step - low)).powi(2)).sum()
                    };
                    let min = weights.iter().fold(0f64, |a, &x| a.min(x));
                    let max = weights.iter().fold(0f64, |a, &x| a.max(x));
                    let absmax = max.max(-min);
                    let plain = if block == Block::Q4_K {
                        noise((max - min) / 15.0, -min)
                    } else {
                        noise(absmax / 31.0, 0.0)
                    };
                    let found =
                        |row: usize| f64::from(f32::from_bits(buffers.scales[row * groups + g])) / 1048576.0;
                    if absmax >= 2f64.powi(100) || absmax == 0.0 {
                        continue;
                    }
                    total += noise(found(4), found(5)) / absmax.powi(2);
                    plain_total += plain / absmax.powi(2);
                }
                assert!(total <= plain_total, "{block} {kind}: {total} above {plain_total}");
            }
        }
    }
}
