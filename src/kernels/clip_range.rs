//! A group's range becomes the smaller of itself and its channel's clip, `edges[channel] = [low, high]` as ordered bits.
//!
//! A range that would be clipped to zero stays as it is. Twin: `shaders/clip_range.wgsl`.

use super::{Binding, Kernel, TileBuffers, TileParams, arithmetic::widened};

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "clip_range",
    wgsl: include_str!("../../shaders/clip_range.wgsl"),
    cpu: clip_range,
    threads: |p| p.groups,
    team: false,
    touches: |p| vec![(Binding::Ranges, 2 * p.groups as usize), (Binding::Edges, 2 * p.channels() as usize)],
};

fn clip_range(params: &TileParams, b: &mut TileBuffers) {
    for group in 0..params.groups as usize {
        let channel = group * params.group_len as usize / params.channel_len as usize;
        let low = b.ranges[2 * group].min(!b.edges[2 * channel]);
        let high = b.ranges[2 * group + 1].min(b.edges[2 * channel + 1]);
        if widened(low) == 0 && widened(high) == 0 {
            continue;
        }
        b.ranges[2 * group] = low;
        b.ranges[2 * group + 1] = high;
    }
}
