//! Scale and zero point of every group, from its range, and from the error sums of [`super::search`] and [`super::refine`] if there are any:
//! the candidate with the smallest sum, the first of equals. Twin: `shaders/qparams.wgsl`.

use super::{Binding, Kernel, TileBuffers, TileParams, arithmetic::*, bits::*, search::best_number};
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
    chosen::<false>(params, ranges, &[], scales, zero_points);
}

/// Scales and zero points of one candidate of each group: those of `numbers` if they were `SEARCHED`, else the whole range.
#[inline(always)]
fn chosen<const SEARCHED: bool>(
    params: &TileParams,
    ranges: &[u32],
    numbers: &[u32],
    scales: &mut [u32],
    zero_points: &mut [i32],
) {
    // with constants in the place of these two the loop becomes vector code
    match (params.scale_dtype, params.symmetric) {
        (BF16, 1) => each::<SEARCHED, BF16, 1>(params, ranges, numbers, scales, zero_points),
        (BF16, _) => each::<SEARCHED, BF16, 0>(params, ranges, numbers, scales, zero_points),
        (F16, 1) => each::<SEARCHED, F16, 1>(params, ranges, numbers, scales, zero_points),
        (F16, _) => each::<SEARCHED, F16, 0>(params, ranges, numbers, scales, zero_points),
        (_, 1) => each::<SEARCHED, F32, 1>(params, ranges, numbers, scales, zero_points),
        (_, _) => each::<SEARCHED, F32, 0>(params, ranges, numbers, scales, zero_points),
    }
}

#[inline(always)]
fn each<const SEARCHED: bool, const SCALE: u32, const SYMMETRIC: u32>(
    params: &TileParams,
    ranges: &[u32],
    numbers: &[u32],
    scales: &mut [u32],
    zero_points: &mut [i32],
) {
    let params = TileParams { scale_dtype: SCALE, symmetric: SYMMETRIC, ..*params };
    let groups = scales.len();
    let (ranges, zero_points) = (&ranges.as_chunks::<2>().0[..groups], &mut zero_points[..groups]);
    let numbers = if SEARCHED { &numbers[..groups] } else { numbers };
    for i in 0..groups {
        let number = if SEARCHED { numbers[i] } else { 0 };
        let found = candidate(&params, widened(ranges[i][0]), widened(ranges[i][1]), number);
        (scales[i], zero_points[i]) = (found.scale, found.zero_point);
    }
}

/// Groups that are done together.
const TOGETHER: usize = 64;

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn qparams(params: &TileParams, b: &mut TileBuffers) {
    let groups = params.groups as usize;
    for first in (0..groups).step_by(TOGETHER) {
        let last = (first + TOGETHER).min(groups);
        let (ranges, scales) = (&b.ranges[2 * first..2 * last], &mut b.scales[first..last]);
        let zero_points = &mut b.zero_points[first..last];
        if params.candidates == 0 {
            range_qparams(params, ranges, scales, zero_points);
            continue;
        }
        let mut numbers = [0; TOGETHER];
        for (group, number) in (first..last).zip(&mut numbers) {
            *number = best_number(params, &b.ranges, &b.counts, group);
        }
        chosen::<true>(params, ranges, &numbers, scales, zero_points);
    }
}
