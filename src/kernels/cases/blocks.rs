//! Cases for the kernels of GGUF's blocks.

use super::{ALL_OUTPUTS, Case, Random, data, tile};
use crate::{
    block::Block,
    kernels::{Binding, Kernel, TileParams, block_dequantize, block_steps},
    tensor::Float,
};

/// What blocks are filled with, beside the data of other kernels.
const BLOCK_DATA: [&str; 14] = [
    "gaussian",
    "mixed",
    "block ties",
    "bits",
    "zeros",
    "equal",
    "signed zeros",
    "subnormal",
    "extremes",
    "tiny",
    "positive",
    "negative",
    "non-finite",
    "ties",
];

/// All cases for weights of this dtype, or with `short` those that drivers get wrong first.
pub(super) fn blocks(dtype: Float, short: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for block in Block::ALL {
        // blocks that do not fill words or workgroups
        let counts = if block.len() == 256 { [1, 3, 5, 0] } else { [1, 3, 7, 65] };
        for (number, kind) in BLOCK_DATA.into_iter().enumerate() {
            let counts = if short { &counts[1..2] } else { &counts[number % 2..3 + number % 2] };
            if short && number > 3 {
                continue;
            }
            for &count in counts {
                let params = TileParams { input_dtype: dtype as u32, ..Default::default() }
                    .with_blocks(block, count * block.len() as u32);
                let input = block_data(kind, block, params.elements as usize, dtype);
                let name = format!("{} {count} blocks {block} {kind}", dtype.short_name());
                let wants = if block.len() == 256 { ALL_OUTPUTS } else { SIMPLE_OUTPUTS };
                let kernels = block_steps(block);
                cases.push(Case { name, tile: tile(params, &kernels, vec![], wants, input.len()), input });
            }
        }
        for (seed, saturate, count) in [(1, 0, 1), (2, 1, 3), (3, 0, 9)] {
            let params = TileParams { output_dtype: dtype as u32, saturate, ..Default::default() }
                .with_blocks(block, count * block.len() as u32);
            let mut random = Random(seed);
            let bytes = count as usize * block.bytes();
            let input: Vec<u8> = (0..bytes).map(|_| random.next_u64() as u8).collect();
            let kernels: [&Kernel; 1] = [&block_dequantize::KERNEL];
            let wants = &[Binding::Output, Binding::Counts];
            let name = format!("{count} blocks {block} to {}", dtype.short_name());
            cases.push(Case { name, tile: tile(params, &kernels, vec![], wants, input.len()), input });
        }
    }
    cases
}

const SIMPLE_OUTPUTS: &[Binding] =
    &[Binding::Ranges, Binding::Counts, Binding::Scales, Binding::Output, Binding::Errors];

/// `count` values of one kind.
pub(super) fn block_data(kind: &str, block: Block, count: usize, dtype: Float) -> Vec<u8> {
    let mut random = Random(count as u64);
    let mut value = |i: usize| match kind {
        // groups of very different sizes in one block, some of zeros
        "mixed" => random.gaussian() * [1.0, 1e-3, 0.0, 30.0, 1e-9, 3e-5, 200.0][i / 16 % 7],
        // weights on halves of a step that the first weights of a block fix
        "block ties" => {
            let (first, second) = match block {
                Block::Q4_0 => (-8.0, 0.0),
                Block::Q8_0 => (127.0, 0.0),
                Block::Q6_K => (-32.0, 0.0),
                _ => (15.0, 0.0),
            };
            let code = [first, second, (random.uniform() * first * 2.0f32).round() * 0.5][(i % 32).min(2)];
            code * [1.0, 0.125, 3.0][i / 32 % 3]
        }
        "negative" => -5.0 - random.uniform(),
        "non-finite" => [1.0, -0.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.25, 1e4]
            [(random.next_u64() % 7) as usize],
        _ => 0.0,
    };
    if !matches!(kind, "mixed" | "block ties" | "negative" | "non-finite") {
        return data(kind, count, dtype, 5);
    }
    let mut out = Vec::with_capacity(count * dtype.size());
    for i in 0..count {
        dtype.encode(value(i), &mut out);
    }
    out
}
