//! Scale and zero point of every group, from its range, and from the error sums of [`super::search`] and [`super::refine`] if there are any:
//! the candidate with the smallest sum, the first of equals. Twin: `shaders/qparams.wgsl`.

use super::{
    Binding, Kernel, TileBuffers, TileParams,
    arithmetic::*,
    bits::*,
    search::{best_of, number_of},
};
use multiversion::multiversion;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "qparams",
    wgsl: include_str!("../../shaders/qparams.wgsl"),
    cpu: qparams,
    threads: |p| p.groups,
    team: false,
    touches: |p| {
        vec![
            (Binding::Ranges, 2 * p.groups as usize),
            (Binding::Counts, 2 * (p.groups * p.tallies * p.candidates) as usize),
            (Binding::Scales, p.groups as usize),
            (Binding::ZeroPoints, p.groups as usize),
        ]
    },
};

/// Scales and zero points from ranges alone, for some groups at once.
#[inline(always)]
pub(super) fn range_qparams(
    params: &TileParams,
    ranges: &[u32],
    scales: &mut [u32],
    zero_points: &mut [i32],
) {
    // with constants in the place of these two the loop becomes vector code
    match (params.scale_dtype, params.symmetric) {
        (BF16, 1) => each::<BF16, 1>(params, ranges, scales, zero_points),
        (BF16, _) => each::<BF16, 0>(params, ranges, scales, zero_points),
        (F16, 1) => each::<F16, 1>(params, ranges, scales, zero_points),
        (F16, _) => each::<F16, 0>(params, ranges, scales, zero_points),
        (_, 1) => each::<F32, 1>(params, ranges, scales, zero_points),
        (_, _) => each::<F32, 0>(params, ranges, scales, zero_points),
    }
}

#[inline(always)]
fn each<const SCALE: u32, const SYMMETRIC: u32>(
    params: &TileParams,
    ranges: &[u32],
    scales: &mut [u32],
    zero_points: &mut [i32],
) {
    let params = TileParams { scale_dtype: SCALE, symmetric: SYMMETRIC, ..*params };
    let groups = scales.iter_mut().zip(zero_points).zip(ranges.as_chunks::<2>().0);
    for ((scale, zero_point), range) in groups {
        let found = candidate(&params, widened(range[0]), widened(range[1]), 0);
        (*scale, *zero_point) = (found.scale, found.zero_point);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn qparams(params: &TileParams, b: &mut TileBuffers) {
    for group in 0..params.groups as usize {
        let [coarse, best] =
            [params.coarse, params.candidates].map(|count| best_of(params, &b.counts, group, count));
        let number = number_of(params, best, number_of(params, coarse, 0));
        let (low, high) = (widened(b.ranges[2 * group]), widened(b.ranges[2 * group + 1]));
        let chosen = candidate(params, low, high, number);
        b.scales[group] = chosen.scale;
        b.zero_points[group] = chosen.zero_point;
    }
}
