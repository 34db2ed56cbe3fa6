//! Weights from codes: `x̂ = RN((q − z) · s)`, then to the nearest value of output_dtype.
//!
//! Twin: `shaders/dequantize.wgsl`.

use super::{Binding, Kernel, TileBuffers, TileParams, arithmetic::*, bits::*};
use multiversion::multiversion;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "dequantize",
    wgsl: include_str!("../../shaders/dequantize.wgsl"),
    cpu: dequantize,
    threads: |p| p.float_words(p.output_dtype),
    team: false,
    touches: |p| {
        vec![
            (Binding::Input, p.code_words() as usize),
            (Binding::Scales, p.groups as usize),
            (Binding::ZeroPoints, p.groups as usize),
            (Binding::Counts, 2),
            (Binding::Output, p.float_words(p.output_dtype) as usize),
        ]
    },
};

const RUN: usize = 1024;

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn dequantize(params: &TileParams, b: &mut TileBuffers) {
    let mut codes = [0i32; RUN];
    let mut floats = [0u32; RUN];
    let elements = params.elements as usize;
    let group_len = params.group_len as usize;
    for start in (0..elements).step_by(RUN) {
        let length = RUN.min(elements - start);
        super::error::unpack(params, &b.input, start, &mut codes[..length]);
        let mut at = 0;
        while at < length {
            let group = (start + at) / group_len;
            let end = ((group + 1) * group_len - start).min(length);
            let (s, z) = (b.scales[group], b.zero_points[group]);
            for (x, q) in floats[at..end].iter_mut().zip(&codes[at..end]) {
                *x = flush(multiply(((q - z) as f32).to_bits(), s));
            }
            at = end;
        }
        store(params, &mut b.counts, &mut b.output, start, &floats[..length]);
    }
}

/// Writes floats `start..` of the tile in output_dtype. `start` is even.
#[inline(always)]
pub(super) fn store(
    params: &TileParams,
    counts: &mut [u32],
    output: &mut [u32],
    start: usize,
    floats: &[u32],
) {
    if params.output_dtype == F32 {
        for (word, &x) in output[start..].iter_mut().zip(floats) {
            *word = converted(params, counts, x);
        }
        return;
    }
    for (word, pair) in output[start / 2..].iter_mut().zip(floats.chunks(2)) {
        let high = pair.get(1).map_or(0, |&x| converted(params, counts, x));
        *word = converted(params, counts, pair[0]) | high << 16;
    }
}
