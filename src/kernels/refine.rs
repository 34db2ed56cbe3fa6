//! Squared error of the candidates between the best coarse one of a group and the better of its neighbours, on every
//! chunk: three fine steps (c by 1/4 at 4 bits, by 1 at 8; 1/64 of the range), after the coarse ones in `counts`.
//!
//! At 4 bits and groups of 128 coarse and fine together lose 0.04 dB against every step of 1/8. The arithmetic is that of
//! [`super::search`]. Twin: `shaders/refine.wgsl`.

use super::{Binding, Kernel, TileBuffers, TileParams, search::try_candidates};
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
    try_candidates(params, b, params.coarse..params.candidates);
}
