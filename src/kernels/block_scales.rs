//! Scales of GGUF blocks, as they are stored and as the codes need them. Rows of `scales`, each of one word a group:
//!
//! 0. absmax of the group: the unit of `errors`, nothing else;
//! 1. 1 / step, in f32, or 0 where every code is 0;
//! 2. what is taken off a weight before it is multiplied by that;
//! 3. what the block stores: d as f16, in the upper half m or dmin;
//! 4. and 5. what [`super::block_search`] found.
//!
//! Q4_0: d = mx / −8 of the first weight that is largest in magnitude (−0 for zeros, as in llama.cpp). Q8_0: d = absmax /
//! 127. Q4_1: d = (max − min) / 15, m = min. The codes of these use d before it is rounded to f16; a d below the f32
//! normals counts as zero.
//!
//! Q4_K and Q6_K: d and dmin are the smallest f16 that let the largest step be stored as 63 (Q6_K: −128), the largest low
//! as 63. Each group then takes the stored integers, of 16 pairs around those that the search would like, whose squared
//! error is least, judged as there. `zero_points[g] = step & 255 | low << 8` holds them; codes use their real steps.
//!
//! `counts[0]` grows by every block that f16 cannot hold: d, m or dmin is not finite. Twin: `shaders/block_scales.wgsl`.

use super::{
    Binding, Kernel, TileBuffers, TileParams,
    arithmetic::*,
    bits::*,
    block_search::{Tries, errors, normalized},
};
use multiversion::multiversion;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "block_scales",
    wgsl: include_str!("../../shaders/block_scales.wgsl"),
    cpu: block_scales,
    threads: |p| p.groups,
    team: false,
    touches: |p| {
        let stored = if p.block >= Q4_K { p.groups } else { 0 };
        vec![
            (Binding::Input, p.float_words(p.input_dtype) as usize),
            (Binding::Ranges, 2 * p.groups as usize),
            (Binding::Counts, 1),
            (Binding::Scales, 4 * p.groups as usize),
            (Binding::ZeroPoints, stored as usize),
        ]
    },
};

/// The first of the weights that are largest in magnitude, or a float of its sign and magnitude.
#[inline(always)]
fn extreme(params: &TileParams, input: &[u32], group: usize, low: u32, high: u32) -> u32 {
    if low != high {
        return low.max(high) | if low > high { SIGN } else { 0 };
    }
    let mut weights = [0; 32];
    load_weights(params, input, group * 32, &mut weights);
    weights.into_iter().find(|x| x & MAGNITUDE == high).unwrap_or(0)
}

#[derive(Clone, Copy)]
struct Scale {
    step: u32,
    offset: u32,
}

/// Step and offset of a block that is one group.
#[inline(always)]
fn simple_scale(params: &TileParams, b: &TileBuffers, group: usize, low: u32, high: u32) -> Scale {
    if low.max(high) >= MAX_BLOCK {
        return Scale { step: MAX_BLOCK, offset: 0 };
    }
    if params.block == Q4_0 {
        let largest = extreme(params, &b.input, group, low, high);
        let step = flush(multiply(largest & MAGNITUDE, 0x3e00_0000)) | (!largest & SIGN); // / -8
        return Scale { step, offset: 0 };
    }
    if params.block == Q8_0 {
        return Scale { step: div_rn(low.max(high), 0x42fe_0000), offset: 0 }; // / 127
    }
    let bottom = unordered(!b.ranges[2 * group]);
    let top = unordered(b.ranges[2 * group + 1]);
    let range = flush((f32::from_bits(top) - f32::from_bits(bottom)).to_bits());
    Scale { step: div_rn(range, 0x4170_0000), offset: bottom } // / 15
}

/// The smallest f16 that is not below a positive float.
#[inline(always)]
fn f16_above(x: u32) -> u32 {
    let h = f32_to_f16(x);
    h + u32::from(f16_to_f32(h) < x)
}

/// d and dmin of a super-block: its largest step and low need not be cut.
#[inline(always)]
fn super_halves(params: &TileParams, scales: &[u32], first: usize) -> u32 {
    let groups = params.groups as usize;
    let (mut step, mut low) = (0u32, 0u32);
    for i in first..first + 256 / params.group_len as usize {
        let other = scales[4 * groups + i];
        if other & MAGNITUDE > step & MAGNITUDE {
            step = other;
        }
        low = low.max(scales[5 * groups + i]);
    }
    if params.block == Q6_K {
        // 2^-20 / -128
        return f16_above(flush(multiply(step & MAGNITUDE, 0x3200_0000))) | ((!step & SIGN) >> 16);
    }
    let d = f16_above(flush(multiply(div_rn(step, 0x427c_0000), 0x3580_0000))); // 2^-20 / 63
    d | (f16_above(flush(multiply(div_rn(low, 0x427c_0000), 0x3580_0000))) << 16)
}

/// Nearest integer to a / (b · 2^20), at most 512, of positive floats.
#[inline(always)]
fn multiple(a: u32, b: u32) -> i32 {
    if b == 0 {
        return 0;
    }
    round_small(f32::from_bits(multiply(div_rn(a, b), 0x3580_0000).min(0x4400_0000)))
}

/// A small float in units of 1 / fine of the group's absmax; more than 2^23 is as good as 2^23.
#[inline(always)]
fn unit(x: u32, fine: u32, absmax: u32) -> i32 {
    f32::from_bits(multiply(x, div_rn(fine, absmax)).min(0x4b00_0000)).round_ties_even() as i32
}

/// 0, 1, -1, 2, -2, 3 ...
#[inline(always)]
fn nearby(i: usize) -> i32 {
    if i & 1 == 1 { (i as i32 + 1) >> 1 } else { -(i as i32 >> 1) }
}

#[derive(Clone, Copy, Default)]
struct Stored {
    step: i32,
    low: i32,
}

#[inline(always)]
fn tried<const BLOCK: u32>(i: usize, middle: Stored) -> Stored {
    if BLOCK == Q6_K {
        return Stored { step: (middle.step + nearby(i)).clamp(-128, 127), low: 0 };
    }
    Stored {
        step: (middle.step + nearby(i % 5)).clamp(0, 63),
        low: (middle.low + nearby(i / 5)).clamp(0, 63),
    }
}

/// The best of the stored integers around those that the search would like to have.
#[inline(always)]
fn stored_scale_of<const BLOCK: u32, const N: usize>(
    params: &TileParams,
    b: &TileBuffers,
    group: usize,
    absmax: u32,
    d: u32,
    dmin: u32,
) -> Stored {
    if absmax < MIN_SEARCH {
        return Stored::default();
    }
    let groups = params.groups as usize;
    let step = b.scales[4 * groups + group];
    let multiples = multiple(step & MAGNITUDE, d & MAGNITUDE);
    let middle = Stored {
        step: if (step ^ d) & SIGN != 0 { -multiples } else { multiples },
        low: multiple(b.scales[5 * groups + group], dmin),
    };
    let unit_step = unit(d & MAGNITUDE, 0x4b80_0000, absmax); // 2^24
    let unit_low = unit(dmin, 0x4a80_0000, absmax); // 2^22
    let stored: Tries<Stored> = std::array::from_fn(|i| tried::<BLOCK>(i, middle));
    let steps = stored.map(|stored| {
        let magnitude = ((unit_step * stored.step.abs() + 8) >> 4).min(0x20_0000);
        if (stored.step < 0) != (d >= SIGN) { -magnitude } else { magnitude }
    });
    let lows = stored.map(|stored| ((unit_low * stored.low + 2) >> 2).min(0x20_0000));
    let normal = normalized::<N>(params, &b.input, group, absmax);
    let errors = errors(params, &normal, &steps, &lows);
    let mut best = 0;
    for i in 1..TRIES as usize {
        if errors[i] < errors[best] {
            best = i;
        }
    }
    stored[best]
}

fn overflows(halves: u32) -> bool {
    halves & 0x7fff >= 0x7c00 || (halves >> 16) & 0x7fff >= 0x7c00
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn block_scales(params: &TileParams, b: &mut TileBuffers) {
    let groups = params.groups as usize;
    let groups_per_block = params.block_type().len() / params.group_len as usize;
    for group in 0..groups {
        let low = widened(b.ranges[2 * group]);
        let high = widened(b.ranges[2 * group + 1]);
        let first = group - group % groups_per_block;
        let mut scale = Scale { step: 0, offset: 0 };
        let halves;
        if params.block < Q4_K {
            scale = simple_scale(params, b, group, low, high);
            halves = f32_to_f16(scale.step) | (f32_to_f16(scale.offset) << 16);
            if low.max(high) >= MAX_BLOCK {
                scale.step = 0;
            }
        } else {
            halves = super_halves(params, &b.scales, first);
            let mut stored = Stored::default();
            if !overflows(halves) {
                let d = f16_to_f32(halves & 0xffff);
                let dmin = f16_to_f32(halves >> 16);
                let absmax = low.max(high);
                stored = if params.block == Q4_K {
                    stored_scale_of::<Q4_K, 32>(params, b, group, absmax, d, dmin)
                } else {
                    stored_scale_of::<Q6_K, 16>(params, b, group, absmax, d, dmin)
                };
                scale = Scale {
                    step: flush(multiply(d, (stored.step as f32).to_bits())),
                    offset: flush(multiply(dmin, (-stored.low as f32).to_bits())),
                };
            }
            b.zero_points[group] = (stored.step & 0xff) | (stored.low << 8);
        }
        let mut inverse = 0;
        if scale.step & MAGNITUDE != 0 {
            inverse = div_rn(0x3f80_0000, scale.step & MAGNITUDE) | (scale.step & SIGN);
        }
        b.scales[group] = low.max(high);
        b.scales[groups + group] = inverse;
        b.scales[2 * groups + group] = scale.offset;
        b.scales[3 * groups + group] = halves;
        b.counts[0] += u32::from(group == first && overflows(halves));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        block::Block,
        kernels::{
            blocks::tests::quantized,
            cases::{Random, data},
        },
        tensor::Float,
    };

    #[test]
    fn halves_are_the_smallest_that_are_not_below() {
        let mut random = Random(1);
        for _ in 0..100_000 {
            let x = (random.next_u64() as u32) % 0x477f_e000; // up to 65504
            let h = f16_above(flush(x));
            assert!(f16_to_f32(h) >= flush(x) && (h == 0 || f16_to_f32(h - 1) < flush(x)), "{x:#x}");
        }
        assert_eq!(f16_above(0x477f_e001), 0x7c00);
    }

    #[test]
    fn tries_begin_in_the_middle_and_stay_in_range() {
        let middle = Stored { step: 63, low: 0 };
        let tries: Vec<Stored> = (0..TRIES as usize).map(|i| tried::<Q4_K>(i, middle)).collect();
        assert_eq!((tries[0].step, tries[0].low), (63, 0));
        assert!(tries.iter().all(|t| (0..64).contains(&t.step) && (0..64).contains(&t.low)));
        // of equals the first is taken: the order is the same in both twins
        let middle = Stored { step: 30, low: 40 };
        let tries = (0..TRIES as usize).map(|i| tried::<Q4_K>(i, middle)).map(|t| (t.step - 30, t.low - 40));
        let around = [0, 1, -1, 2, -2];
        let stated = around.iter().flat_map(|low| around.map(|step| (step, *low)));
        assert!(tries.eq(stated.take(TRIES as usize)));
        let middle = Stored { step: -128, low: 0 };
        assert!((0..16).all(|i| (-128..-119).contains(&tried::<Q6_K>(i, middle).step)));
    }

    /// No other pair of stored integers nearby is better by more than the rounding of the judgement, which is to 12 bits.
    #[test]
    fn stored_integers_are_the_best_around() {
        let input = data("gaussian", 1024, Float::F32, 3);
        let weights: &[f32] = bytemuck::cast_slice(&input);
        let (buffers, _) = quantized(Block::Q4_K, Float::F32, &input);
        for (g, weights) in weights.chunks(32).enumerate() {
            let halves = buffers.scales[3 * 32 + g];
            let (d, dmin) = (f16_to_f32(halves & 0xffff), f16_to_f32(halves >> 16));
            let (d, dmin) = (f64::from(f32::from_bits(d)), f64::from(f32::from_bits(dmin)));
            let noise = |step: i32, low: i32| -> f64 {
                let (step, low) = (d * f64::from(step), dmin * f64::from(low));
                let decoded = |x: f64| ((x + low) / step).round().clamp(0.0, 15.0) * step - low;
                weights.iter().map(|&x| (f64::from(x) - decoded(x.into())).powi(2)).sum()
            };
            let stored = buffers.zero_points[g];
            let (step, low) = (stored & 255, stored >> 8);
            for i in 0..9 {
                let other = noise((step + i / 3 - 1).clamp(1, 63), (low + i % 3 - 1).clamp(0, 63));
                // the pair that was chosen may lie at the edge of those that were tried
                assert!(noise(step, low) <= 1.1 * other, "group {g}");
            }
        }
    }
}
