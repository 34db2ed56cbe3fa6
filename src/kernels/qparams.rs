//! Scale and zero point of every group, from its range, and from the error sums of [`super::search`] if there are any:
//! the candidate with the smallest sum, the first of equals. Twin: `shaders/qparams.wgsl`.

use super::{Binding, Kernel, TileBuffers, TileParams, arithmetic::*};

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

fn qparams(params: &TileParams, b: &mut TileBuffers) {
    for group in 0..params.groups as usize {
        let mut best = 0;
        let mut best_sum = u64::MAX;
        for i in 0..params.candidates {
            let mut sum = 0u64;
            for table in 0..params.tallies as usize {
                let at =
                    2 * ((group * params.tallies as usize + table) * params.candidates as usize + i as usize);
                sum += u64::from(b.counts[at]) | u64::from(b.counts[at + 1]) << 32;
            }
            if sum < best_sum {
                best = i;
                best_sum = sum;
            }
        }
        let (low, high) = (widened(b.ranges[2 * group]), widened(b.ranges[2 * group + 1]));
        let chosen = candidate(params, low, high, best);
        b.scales[group] = chosen.scale;
        b.zero_points[group] = chosen.zero_point;
    }
}
