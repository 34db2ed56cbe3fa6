//! Floats in another dtype, to the nearest value. `counts` is of what overflowed, and of what was not finite.
//!
//! Twin: `shaders/convert.wgsl`.

use super::{Binding, Kernel, TileBuffers, TileParams, arithmetic::load_bits, dequantize::store};

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "convert",
    wgsl: include_str!("../../shaders/convert.wgsl"),
    cpu: convert,
    threads: |p| p.float_words(p.output_dtype),
    team: false,
    touches: |p| {
        vec![
            (Binding::Input, p.float_words(p.input_dtype) as usize),
            (Binding::Counts, 2),
            (Binding::Output, p.float_words(p.output_dtype) as usize),
        ]
    },
};

const RUN: usize = 1024;

fn convert(params: &TileParams, b: &mut TileBuffers) {
    let mut floats = [0u32; RUN];
    let elements = params.elements as usize;
    for start in (0..elements).step_by(RUN) {
        let floats = &mut floats[..RUN.min(elements - start)];
        load_bits(params, &b.input, start, floats);
        store(params, &mut b.counts, &mut b.output, start, floats);
    }
}
