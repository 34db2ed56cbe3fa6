//! Squared error of the candidates around the best coarse one of a group, on every chunk: up to three fine steps (c by 1/4
//! at 4 bits, by 1 at 8; 1/64 of the range) to either side, after the coarse ones in `counts`.
//!
//! At 4 bits and groups of 128 coarse and fine together lose 0.02 dB against every step of 1/8. The arithmetic is that of
//! [`super::search`]. Twin: `shaders/refine.wgsl`.

use super::{
    Binding, CHUNK, Kernel, TileBuffers, TileParams,
    search::{best_of, number_of, try_candidates},
};
use multiversion::multiversion;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "refine",
    wgsl: concat!(include_str!("../../shaders/refine.wgsl"), include_str!("../../shaders/trials.wgsl")),
    cpu: refine,
    threads: |p| p.chunks * (p.candidates - p.coarse),
    team: false,
    touches: |p| {
        vec![
            (Binding::Input, p.float_words(p.input_dtype) as usize),
            (Binding::Ranges, 2 * p.groups as usize),
            (Binding::Counts, 2 * (p.chunks * p.candidates) as usize),
        ]
    },
};

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn refine(params: &TileParams, b: &mut TileBuffers) {
    let mut normal = [0; CHUNK as usize];
    for group in 0..params.groups {
        let best = number_of(params, best_of(params, &b.counts, group as usize, params.coarse), 0);
        try_candidates(params, b, group, best, params.coarse..params.candidates, &mut normal);
    }
}
