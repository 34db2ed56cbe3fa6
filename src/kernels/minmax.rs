//! Range of every group: `ranges[2g] = max ordered(−x)`, `ranges[2g + 1] = max ordered(x)`, on top of what is there.
//!
//! Zeros stand for "nothing seen", so buffers start as zeros, and ranges of tiles combine by integer maximum. A value
//! that is not finite shows as a bound of at least `ordered(inf)`. Twin: `shaders/minmax.wgsl`.

use super::{Binding, Kernel, TileBuffers, TileParams, arithmetic::*, bits::F32};
use multiversion::multiversion;
use std::ops::Range;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "minmax",
    wgsl: include_str!("../../shaders/minmax.wgsl"),
    cpu: minmax,
    threads: |p| p.chunks,
    team: true,
    touches: |p| {
        vec![
            (Binding::Input, p.float_words(p.input_dtype) as usize),
            (Binding::Ranges, 2 * p.groups as usize),
        ]
    },
};

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn minmax(params: &TileParams, b: &mut TileBuffers) {
    for group in 0..params.groups {
        let range = &mut b.ranges[2 * group as usize..][..2];
        for chunk in 0..params.chunks_per_group {
            let (low, high) = chunk_range(params, &b.input, params.chunk_of(group, chunk));
            range[0] = range[0].max(low);
            range[1] = range[1].max(high);
        }
    }
}

/// Bounds of some weights. Halves are compared as they are stored: decoding keeps their order, and so does the zero that
/// stands for what lies below the normals.
#[inline(always)]
pub(super) fn chunk_range(params: &TileParams, input: &[u32], span: Range<usize>) -> (u32, u32) {
    let (mut low, mut high);
    if params.input_dtype == F32 {
        (low, high) = (0u32, 0u32);
        for &x in &input[span] {
            let up = ordered(x);
            low = low.max(!up);
            high = high.max(up);
        }
        (low, high) = (unordered(!low), unordered(high));
    } else {
        let halves: &[u16] = bytemuck::cast_slice(input);
        let (mut least, mut most) = (0u16, 0u16);
        for &h in &halves[span] {
            let up = h ^ (((h as i16 >> 15) as u16) | 0x8000);
            least = least.max(!up);
            most = most.max(up);
        }
        let stored = |up: u16| u32::from(if up >= 0x8000 { up ^ 0x8000 } else { !up });
        low = widen(stored(!least), params.input_dtype);
        high = widen(stored(most), params.input_dtype);
    }
    (!ordered(flush(low)), ordered(flush(high)))
}
