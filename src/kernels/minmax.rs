//! Range of every group: `ranges[2g] = max ordered(−x)`, `ranges[2g + 1] = max ordered(x)`, on top of what is there.
//!
//! Zeros stand for "nothing seen", so buffers start as zeros, and ranges of tiles combine by integer maximum. A value
//! that is not finite shows as a bound of at least `ordered(inf)`. Twin: `shaders/minmax.wgsl`.

use super::{Binding, Kernel, TileBuffers, TileParams, arithmetic::*, bits::*};
use multiversion::multiversion;

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
    let groups = params.groups as usize;
    for (group, range) in b.ranges.as_chunks_mut::<2>().0[..groups].iter_mut().enumerate() {
        let mut found = [group_range(params, &b.input, group as u32)];
        decode_ranges(params.input_dtype, &mut found);
        *range = [range[0].max(found[0][0]), range[1].max(found[0][1])];
    }
}

/// Bounds of a group's weights as they are stored, in an order that integers have: decoding keeps it, and so does the
/// zero that stands for what lies below the normals.
#[inline(always)]
pub(super) fn group_range(params: &TileParams, input: &[u32], group: u32) -> [u32; 2] {
    let span = (group * params.group_len) as usize..((group + 1) * params.group_len) as usize;
    if params.input_dtype == F32 {
        let (mut low, mut high) = (u32::MAX, 0);
        for &x in &input[span] {
            let up = ordered(x);
            low = low.min(up);
            high = high.max(up);
        }
        return [!low, high];
    }
    let halves: &[u16] = bytemuck::cast_slice(input);
    let (mut low, mut high) = (u16::MAX, 0u16);
    for &h in &halves[span] {
        let up = h ^ (((h as i16 >> 15) as u16) | 0x8000);
        low = low.min(up);
        high = high.max(up);
    }
    [!low, high].map(u32::from)
}

/// What [`group_range`] found, as ranges are kept.
#[inline(always)]
pub(super) fn decode_ranges(dtype: u32, ranges: &mut [[u32; 2]]) {
    // with a constant in its place the loop becomes vector code
    match dtype {
        F32 => decode::<F32>(ranges),
        F16 => decode::<F16>(ranges),
        _ => decode::<BF16>(ranges),
    }
}

#[inline(always)]
fn decode<const DTYPE: u32>(ranges: &mut [[u32; 2]]) {
    let stored = |up: u32| match DTYPE {
        F32 => unordered(up),
        _ if up >= 0x8000 => up ^ 0x8000,
        _ => !up & 0xffff,
    };
    for range in ranges {
        let low = stored(if DTYPE == F32 { !range[0] } else { !range[0] & 0xffff });
        *range = [!ordered(flush(widen(low, DTYPE))), ordered(flush(widen(stored(range[1]), DTYPE)))];
    }
}
