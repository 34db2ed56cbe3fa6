//! Squared error of every candidate scale on every chunk, in 64-bit integers (`counts[chunk][candidate] = [low, high]`).
//!
//! A group is normalised to integers of 13 bits (16 at 8 bits) and every candidate's scale to a step on the same grid;
//! a reconstruction is `(q · step + 128) >> 8`. So the choice is the same on every device. Groups under 2⁻¹⁰⁰ (or not finite) get zeros,
//! and with them candidate 0, as [`super::qparams`] takes the first of equals. Twin: `shaders/search.wgsl`.

use super::{Binding, CHUNK, Kernel, TileBuffers, TileParams, arithmetic::*, bits::*};
use multiversion::multiversion;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "search",
    wgsl: include_str!("../../shaders/search.wgsl"),
    cpu: search,
    threads: |p| p.chunks * p.candidates,
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
    let mut weights = [0u32; CHUNK as usize];
    let mut normal = [0i32; CHUNK as usize];
    for chunk in 0..params.chunks {
        let group = chunk / params.chunks_per_group;
        let low = widened(b.ranges[2 * group as usize]);
        let high = widened(b.ranges[2 * group as usize + 1]);
        let absmax = low.max(high);
        let sums =
            &mut b.counts[2 * (chunk * params.candidates) as usize..][..2 * params.candidates as usize];
        if !(MIN_SEARCH..INFINITY).contains(&absmax) {
            sums.fill(0);
            continue;
        }
        let four = params.bits == 4;
        let fine = div_rn(if four { 0x4600_0000 } else { 0x4780_0000 }, absmax); // 2^13 or 2^16
        let unit = div_rn(if four { 0x4a00_0000 } else { 0x4b80_0000 }, absmax); // 2^21 or 2^24
        let start = group * params.group_len + (chunk % params.chunks_per_group) * params.chunk_len;
        let end = (start + params.chunk_len).min((group + 1) * params.group_len);
        let length = (end - start) as usize;
        load_weights(params, &b.input, start as usize, &mut weights[..length]);
        for (n, &x) in normal.iter_mut().zip(&weights[..length]) {
            *n = (f32::from_bits(x) * f32::from_bits(fine)).round_ties_even() as i32;
        }
        for i in 0..params.candidates {
            let tried = candidate(params, low, high, i);
            let step = multiply(tried.scale & MAGNITUDE, unit).min(0x4b00_0000);
            let step = f32::from_bits(step).round_ties_even() as i32;
            let inverse = f32::from_bits(div_rn(0x4400_0000, (step as f32).to_bits())); // 512 / step
            let sum = squared_error(params, &normal[..length], step, inverse, tried);
            sums[2 * i as usize] = sum as u32;
            sums[2 * i as usize + 1] = (sum >> 32) as u32;
        }
    }
}

#[inline(always)]
fn squared_error(params: &TileParams, normal: &[i32], step: i32, inverse: f32, tried: QParams) -> u64 {
    let z = tried.zero_point;
    let flip = -i32::from(tried.scale >= SIGN);
    let signed_step = (step ^ flip) - flip;
    let mut sum = 0u64;
    for &x in normal {
        // the product lies below 2^23 for every group whose codes differ from 0, and NaN cannot occur
        let k = ((x.abs() as f32 * inverse) as i32 + 1) >> 1;
        let negative = (x >> 31) ^ flip;
        let code = (((k ^ negative) - negative) + z).clamp(params.qmin, params.qmax);
        let decoded = ((code - z) * signed_step + 128) >> 8;
        let difference = (x - decoded).abs().min(65535) as u32;
        sum += u64::from(difference * difference);
    }
    sum
}
