//! Scale and zero point of every group, from its range, and from the error sums of [`super::search`] and [`super::refine`] if there are any:
//! the candidate with the smallest sum, the first of equals. Twin: `shaders/qparams.wgsl`.

use super::{
    Binding, Kernel, TileBuffers, TileParams,
    arithmetic::*,
    bits::*,
    search::{best_of, number_of},
};

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
pub(super) fn range_qparams(params: &TileParams, ranges: &[u32], scales: &mut [u32], zero_points: &mut [i32]) {
    // with constants in the place of these two the loop becomes vector code
    let each = |params: TileParams, scales: &mut [u32], zero_points: &mut [i32]| {
        let groups = scales.iter_mut().zip(zero_points).zip(ranges.as_chunks::<2>().0);
        for ((scale, zero_point), range) in groups {
            let found = candidate(&params, widened(range[0]), widened(range[1]), 0);
            (*scale, *zero_point) = (found.scale, found.zero_point);
        }
    };
    let [scale_dtype, symmetric] = [params.scale_dtype, params.symmetric];
    let mut with = |scale_dtype, symmetric| {
        each(TileParams { scale_dtype, symmetric, ..*params }, scales, zero_points);
    };
    match (scale_dtype, symmetric) {
        (BF16, 1) => with(BF16, 1),
        (BF16, _) => with(BF16, 0),
        (F16, 1) => with(F16, 1),
        (F16, _) => with(F16, 0),
        (_, 1) => with(F32, 1),
        (_, _) => with(F32, 0),
    }
}

fn qparams(params: &TileParams, b: &mut TileBuffers) {
    for group in 0..params.groups as usize {
        let coarse = best_of(params, &b.counts, group, params.coarse);
        let best = best_of(params, &b.counts, group, params.candidates);
        let number = number_of(params, best, number_of(params, coarse, 0));
        let (low, high) = (widened(b.ranges[2 * group]), widened(b.ranges[2 * group + 1]));
        let chosen = candidate(params, low, high, number);
        b.scales[group] = chosen.scale;
        b.zero_points[group] = chosen.zero_point;
    }
}
