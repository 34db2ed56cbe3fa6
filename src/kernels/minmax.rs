//! Range of every group: `ranges[2g] = max ordered(−x)`, `ranges[2g + 1] = max ordered(x)`, on top of what is there.
//!
//! Zeros stand for "nothing seen", so buffers start as zeros, and ranges of tiles combine by integer maximum. A value
//! that is not finite shows as a bound of at least `ordered(inf)`. Twin: `shaders/minmax.wgsl`.

use super::{Binding, CHUNK, Kernel, TileBuffers, TileParams, arithmetic::*};
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
    let mut weights = [0u32; CHUNK as usize];
    for chunk in 0..params.chunks {
        let group = chunk / params.chunks_per_group;
        let start = group * params.group_len + (chunk % params.chunks_per_group) * params.chunk_len;
        let end = (start + params.chunk_len).min((group + 1) * params.group_len);
        let weights = &mut weights[..(end - start) as usize];
        load_weights(params, &b.input, start as usize, weights);
        let mut low = 0;
        let mut high = 0;
        for &x in weights.iter() {
            let up = ordered(x);
            low = low.max(!up);
            high = high.max(up);
        }
        let range = &mut b.ranges[2 * group as usize..][..2];
        range[0] = range[0].max(low);
        range[1] = range[1].max(high);
    }
}
