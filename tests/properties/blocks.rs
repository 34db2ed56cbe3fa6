//! GGUF's blocks.

use crate::made::*;
use monoquant::{
    block::Block,
    kernels::{TileBuffers, TileParams, block_dequantize, block_steps},
    tensor::Float,
};
use proptest::prelude::*;

/// A block type, and some blocks of weights in a dtype.
fn weights_of(blocks: &[Block]) -> impl Strategy<Value = (Block, Float, Vec<u8>)> {
    (prop::sample::select(blocks.to_vec()), float(), 1usize..4).prop_flat_map(|(block, float, blocks)| {
        values(blocks * block.len()).prop_map(move |values| (block, float, encoded(float, &values)))
    })
}

fn weights() -> impl Strategy<Value = (Block, Float, Vec<u8>)> {
    weights_of(&Block::ALL)
}

/// Of types without a search.
fn simple() -> impl Strategy<Value = (Block, Float, Vec<u8>)> {
    weights_of(&[Block::Q4_0, Block::Q4_1, Block::Q8_0])
}

fn quantized(block: Block, float: Float, bytes: &[u8]) -> (TileBuffers, Vec<u8>) {
    let elements = bytes.len() / float.size();
    let params =
        TileParams { input_dtype: float as u32, ..Default::default() }.with_blocks(block, elements as u32);
    let buffers = run(params, &block_steps(block), bytes, |_| {});
    let stored = bytemuck::cast_slice(&buffers.output)[..elements / block.len() * block.bytes()].to_vec();
    (buffers, stored)
}

fn decoded(block: Block, bytes: &[u8]) -> Vec<f32> {
    let elements = bytes.len() / block.bytes() * block.len();
    let params = TileParams::default().with_blocks(block, elements as u32);
    bytemuck::cast_slice(&run(params, &[&block_dequantize::KERNEL], bytes, |_| {}).output).to_vec()
}

fn floats(float: Float, bytes: &[u8]) -> Vec<f64> {
    bytes.chunks(float.size()).map(|b| f64::from(float.decode(b))).collect()
}

/// Step and base of a group as they are stored: a code stands for `step · code + base`.
fn line(block: Block, buffers: &TileBuffers, group: usize) -> (f64, f64) {
    let groups = buffers.scales.len() / if matches!(block, Block::Q4_K | Block::Q6_K) { 6 } else { 4 };
    let halves = buffers.scales[3 * groups + group];
    let [d, m] = [halves, halves >> 16].map(|h| half::f16::from_bits(h as u16).to_f64());
    match block {
        Block::Q4_K => {
            let stored = buffers.zero_points[group];
            (d * f64::from(stored & 63), -m * f64::from(stored >> 8))
        }
        Block::Q6_K => (d * f64::from(buffers.zero_points[group] as i8), 0.0),
        Block::Q4_1 => (d, m),
        Block::Q4_0 | Block::Q8_0 => (d, 0.0),
    }
}

properties! {
    /// A weight has the code, of those that its block can say, that decodes nearest to it, but for the rounding of d.
    [minmax block_search block_scales block_pack block_dequantize]
    fn weights_get_the_nearest_value_of_their_block((block, float, bytes) in weights()) {
        let (buffers, stored) = quantized(block, float, &bytes);
        let (weights, back) = (floats(float, &bytes), decoded(block, &stored));
        let codes = match block {
            Block::Q4_0 => -8..8,
            Block::Q4_1 | Block::Q4_K => 0..16,
            Block::Q8_0 => -127..128,
            Block::Q6_K => -32..32,
        };
        for (group, (xs, backs)) in weights.chunks(block.group_len()).zip(back.chunks(block.group_len())).enumerate() {
            let (step, base) = line(block, &buffers, group);
            let absmax = xs.iter().fold(0f64, |max, x| max.max(x.abs()));
            // d is f16, also where that is subnormal, and so is Q4_1's m: values lie apart by this, twice over where
            // the code of another one is nearer
            let off = 6.0 * (absmax * 2f64.powi(-11) + 128.0 * 2f64.powi(-25));
            for (x, back) in xs.iter().zip(backs) {
                let nearest = codes.clone().map(|code| (x - (step * f64::from(code) + base)).abs()).fold(f64::INFINITY, f64::min);
                let found = (x - f64::from(*back)).abs();
                prop_assert!(found <= nearest + off, "{}: {} became {}, {} off instead of {}", block, x, back, found, nearest);
            }
        }
    }

    /// A simple block reaches all of its weights: nothing is cut but by Q4_0, which has one code less on one side.
    [block_scales block_pack block_dequantize]
    fn simple_blocks_reach_all_of_their_weights((block, float, bytes) in simple()) {
        let (buffers, stored) = quantized(block, float, &bytes);
        for (i, (x, back)) in floats(float, &bytes).iter().zip(decoded(block, &stored)).enumerate() {
            let group = i / block.group_len();
            let step = line(block, &buffers, group).0.abs();
            let most = if block == Block::Q4_0 { step } else { step / 2.0 };
            let absmax = f64::from(f32::from_bits(buffers.scales[group]));
            let off = 3.0 * (absmax * 2f64.powi(-11) + 128.0 * 2f64.powi(-25));
            prop_assert!((x - f64::from(back)).abs() <= most + off, "{}: {} became {} by {}", block, x, back, step);
        }
    }

    /// What a simple block decodes to is what it decodes to after another round.
    [block_scales block_pack block_dequantize]
    fn simple_blocks_are_stable((block, float, bytes) in simple()) {
        let once = decoded(block, &quantized(block, float, &bytes).1);
        let twice = decoded(block, &quantized(block, Float::F32, bytemuck::cast_slice(&once)).1);
        for (once, twice) in once.chunks(32).zip(twice.chunks(32)) {
            let absmax = once.iter().fold(0f32, |max, x| max.max(x.abs()));
            // the sum d · q + m of Q4_1 is rounded to f32
            let off = if block == Block::Q4_1 { absmax * 2f32.powi(-9) } else { 0.0 };
            prop_assert!(once.iter().zip(twice).all(|(a, b)| (a - b).abs() <= off), "{}: {:?} {:?}", block, once, twice);
        }
    }

    /// A larger weight of a group does not decode to a smaller value.
    [block_pack block_dequantize]
    fn blocks_keep_the_order((block, float, bytes) in weights()) {
        let (_, stored) = quantized(block, float, &bytes);
        let (weights, back) = (floats(float, &bytes), decoded(block, &stored));
        for (xs, backs) in weights.chunks(block.group_len()).zip(back.chunks(block.group_len())) {
            let mut pairs: Vec<_> = xs.iter().zip(backs).collect();
            pairs.sort_by(|a, b| a.0.total_cmp(b.0).then(a.1.total_cmp(b.1)));
            prop_assert!(pairs.is_sorted_by(|a, b| a.1 <= b.1), "{}: {:?}", block, pairs);
        }
    }

    /// Sums of errors are those of what the block decodes to, in units of absmax.
    [block_error block_dequantize]
    fn block_errors_are_those_of_plain_arithmetic((block, float, bytes) in weights()) {
        let (buffers, stored) = quantized(block, float, &bytes);
        let (weights, back) = (floats(float, &bytes), decoded(block, &stored));
        for (group, (xs, backs)) in weights.chunks(block.group_len()).zip(back.chunks(block.group_len())).enumerate() {
            let absmax = f64::from(f32::from_bits(buffers.scales[group]));
            let [mut signal, mut noise] = [0.0; 2];
            if absmax > 0.0 {
                for (x, back) in xs.iter().zip(backs) {
                    signal += (x / absmax).powi(2);
                    noise += ((x - f64::from(*back)) / absmax).powi(2);
                }
            }
            for (found, expected) in buffers.errors[group].into_iter().zip([signal, noise]) {
                prop_assert!((f64::from(found) - expected).abs() <= 1e-3 * expected + 1e-5, "{}: {} instead of {}", block, found, expected);
            }
        }
    }
}
