//! Sums for the SQNR of every group of a block, in units of its absmax: `errors[g] = [Σ(x/a)², Σ((x − x̂)/a)²]`, where
//! `scales[g]` is a, and x̂ what the block decodes to. Zeros for a group that is zero, or in a block that f16 cannot hold.
//!
//! Only a report is made of these, so they are outside the byte contract. Twin: `shaders/block_error.wgsl`.

use super::{Binding, Kernel, TileBuffers, TileParams, arithmetic::*, bits::*};
use multiversion::multiversion;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "block_error",
    wgsl: include_str!("../../shaders/block_error.wgsl"),
    cpu: block_error,
    threads: |p| p.groups,
    team: false,
    touches: |p| {
        let stored = if p.block >= Q4_K { p.groups } else { 0 };
        vec![
            (Binding::Input, p.float_words(p.input_dtype) as usize),
            (Binding::Scales, 4 * p.groups as usize),
            (Binding::ZeroPoints, stored as usize),
            (Binding::Errors, 2 * p.groups as usize),
        ]
    },
};

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn block_error(params: &TileParams, b: &mut TileBuffers) {
    match params.block {
        Q4_0 => squares::<Q4_0, 32>(params, b),
        Q4_1 => squares::<Q4_1, 32>(params, b),
        Q8_0 => squares::<Q8_0, 32>(params, b),
        Q4_K => squares::<Q4_K, 32>(params, b),
        _ => squares::<Q6_K, 16>(params, b),
    }
}

#[inline(always)]
fn squares<const BLOCK: u32, const N: usize>(params: &TileParams, b: &mut TileBuffers) {
    let groups = params.groups as usize;
    for group in 0..groups {
        let absmax = b.scales[group];
        let inverse = b.scales[groups + group];
        let offset = b.scales[2 * groups + group];
        let halves = b.scales[3 * groups + group];
        let mut step = f32::from_bits(f16_to_f32(halves & 0xffff));
        let mut base = f32::from_bits(f16_to_f32(halves >> 16));
        if BLOCK >= Q4_K {
            let stored = b.zero_points[group];
            step *= if BLOCK == Q4_K { stored & 63 } else { stored << 24 >> 24 } as f32;
            base = f32::from_bits(offset);
        }
        let (mut signal, mut noise) = ([0f32; N], [0f32; N]);
        let finite = halves & 0x7c00 != 0x7c00 && halves & 0x7c00_0000 != 0x7c00_0000;
        if (MIN_NORMAL..MAX_BLOCK).contains(&absmax) && finite {
            let scale = 1.0 / f32::from_bits(absmax);
            let mut weights = [0; N];
            load_weights(params, &b.input, group * N, &mut weights);
            for i in 0..N {
                let code = match inverse {
                    0 => 0.0,
                    _ => block_code::<BLOCK>(params, weights[i], inverse, offset) as f32,
                };
                let x = f32::from_bits(weights[i]);
                let d = (x - (step * code + base)) * scale;
                signal[i] = (x * scale) * (x * scale);
                noise[i] = d * d;
            }
        }
        b.errors[group] = [total(signal), total(noise)];
    }
}

/// The sum, of halves of halves, so that it fills vector registers.
#[inline(always)]
fn total<const N: usize>(mut terms: [f32; N]) -> f32 {
    let mut width = N / 2;
    while width > 0 {
        for i in 0..width {
            terms[i] += terms[i + width];
        }
        width /= 2;
    }
    terms[0]
}
