//! Histogram of every channel: exact counts between edges that the host made, by comparing ordered bits.
//!
//! Bin b holds what lies in `[edges[b], edges[b + 1])`; the last one takes its upper edge too.
//! Twin: `shaders/histogram.wgsl`.

use super::{Binding, Kernel, TileBuffers, TileParams, arithmetic::*};

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "histogram",
    wgsl: include_str!("../../shaders/histogram.wgsl"),
    cpu: histogram,
    threads: |p| p.elements,
    team: false,
    touches: |p| {
        vec![
            (Binding::Input, p.float_words(p.input_dtype) as usize),
            (Binding::Edges, p.channels() as usize * (p.bins as usize + 1)),
            (Binding::Counts, p.channels() as usize * p.bins as usize),
        ]
    },
};

fn histogram(params: &TileParams, b: &mut TileBuffers) {
    let bins = params.bins as usize;
    let mut x = [0u32; 1];
    for i in 0..params.elements {
        let channel = (i / params.channel_len) as usize;
        let edges = &b.edges[channel * (bins + 1)..][..bins + 1];
        load_weights(params, &b.input, i as usize, &mut x);
        let x = ordered(x[0]);
        let bin = edges[1..bins].partition_point(|&edge| edge <= x);
        b.counts[channel * bins + bin] += 1;
    }
}
