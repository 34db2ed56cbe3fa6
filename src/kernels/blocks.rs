//! Tiles of GGUF blocks: what their parameters are, and which kernels make them.

use super::{Kernel, TileParams, block_error, block_pack, block_scales, block_search, minmax};
use crate::block::Block;

/// The kernels that quantize to blocks, in order. They leave the blocks in `output`, sums for a report in `errors`, one of
/// each group, in units of `scales`, and in `counts[0]` the number of blocks whose scale or minimum overflows f16; what
/// `minmax` leaves in `ranges` tells whether all weights were finite.
pub fn block_steps(block: Block) -> Vec<&'static Kernel> {
    let mut steps = vec![&minmax::KERNEL];
    if matches!(block, Block::Q4_K | Block::Q6_K) {
        steps.push(&block_search::KERNEL);
    }
    steps.extend([&block_scales::KERNEL, &block_pack::KERNEL, &block_error::KERNEL]);
    steps
}

impl TileParams {
    /// Makes the tile a sequence of GGUF blocks: `elements` weights, which fill them.
    pub fn with_blocks(mut self, block: Block, elements: u32) -> Self {
        self = self.with_groups(elements, block.group_len() as u32);
        self.block = block as u32;
        self.row_len = elements;
        (self.qmin, self.qmax) = match block {
            Block::Q4_0 => (-8, 7),
            Block::Q4_1 | Block::Q4_K => (0, 15),
            Block::Q8_0 => (-127, 127),
            Block::Q6_K => (-32, 31),
        };
        self.code_offset = match block {
            Block::Q4_0 => 8,
            Block::Q6_K => 32,
            _ => 0,
        };
        self
    }

    /// The type of the tile's blocks.
    pub fn block_type(&self) -> Block {
        Block::ALL[self.block as usize]
    }

    /// Words that hold the bytes of all blocks.
    pub fn block_words(&self) -> u32 {
        let block = self.block_type();
        (self.elements / block.len() as u32 * block.bytes() as u32).div_ceil(4)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        backend::{Pass, run_on_cpu},
        kernels::{
            TileBuffers, block_dequantize,
            cases::{Random, data},
        },
        tensor::Float,
    };

    fn run(params: TileParams, kernels: Vec<&'static Kernel>, input: &[u8]) -> TileBuffers {
        let pass = Pass { params, kernels, preload: vec![], wants: &[] };
        let mut buffers = TileBuffers::default();
        buffers.resize(&pass.lengths());
        bytemuck::cast_slice_mut(&mut buffers.input)[..input.len()].copy_from_slice(input);
        run_on_cpu(&pass, &mut buffers);
        buffers
    }

    /// Blocks of these weights, with all that the kernels leave, and their bytes.
    pub fn quantized(block: Block, dtype: Float, input: &[u8]) -> (TileBuffers, Vec<u8>) {
        let elements = input.len() / dtype.size();
        let params = TileParams { input_dtype: dtype as u32, ..Default::default() }
            .with_blocks(block, elements as u32);
        let buffers = run(params, block_steps(block), input);
        let bytes = bytemuck::cast_slice(&buffers.output)[..elements / block.len() * block.bytes()].to_vec();
        (buffers, bytes)
    }

    /// What blocks decode to, in f32.
    pub fn dequantized(block: Block, bytes: &[u8]) -> Vec<f32> {
        let elements = bytes.len() / block.bytes() * block.len();
        let params = TileParams::default().with_blocks(block, elements as u32);
        let buffers = run(params, vec![&block_dequantize::KERNEL], bytes);
        assert_eq!(buffers.counts, [0, 0]);
        bytemuck::cast_slice(&buffers.output).to_vec()
    }

    /// The bytes of f32 weights.
    pub fn f32s(weights: &[f32]) -> &[u8] {
        bytemuck::cast_slice(weights)
    }

    fn sums(weights: &[f32], decoded: &[f32]) -> [f64; 2] {
        weights.iter().zip(decoded).fold([0.0; 2], |[signal, noise], (&x, &y)| {
            [signal + f64::from(x).powi(2), noise + (f64::from(x) - f64::from(y)).powi(2)]
        })
    }

    fn gaussian(count: usize) -> Vec<f32> {
        let mut random = Random(3);
        (0..count).map(|_| random.gaussian() * 0.02).collect()
    }

    /// No type falls behind what llama.cpp makes of Gaussian weights (21.3, 22.1, 45.4, 22.9 and 35.0 dB).
    #[test]
    fn round_trips_are_as_good_as_llama_cpps() {
        let weights = gaussian(1 << 16);
        for (block, least) in Block::ALL.into_iter().zip([21.2, 22.0, 45.3, 23.0, 35.4]) {
            let (_, bytes) = quantized(block, Float::F32, f32s(&weights));
            let [signal, noise] = sums(&weights, &dequantized(block, &bytes));
            let sqnr = 10.0 * (signal / noise).log10();
            assert!(sqnr >= least, "{block}: {sqnr:.2} dB");
        }
    }

    #[test]
    fn errors_are_those_of_what_the_blocks_decode_to() {
        for block in Block::ALL {
            for kind in ["gaussian", "positive", "equal", "ties", "zeros", "subnormal"] {
                let input = data(kind, 1024, Float::F32, 1);
                let weights: &[f32] = bytemuck::cast_slice(&input);
                let (buffers, bytes) = quantized(block, Float::F32, &input);
                let decoded = dequantized(block, &bytes);
                for (g, [signal, noise]) in buffers.errors.iter().enumerate() {
                    let at = g * block.group_len()..(g + 1) * block.group_len();
                    let expected = sums(&weights[at.clone()], &decoded[at]);
                    let unit = f64::from(f32::from_bits(buffers.scales[g])).powi(2);
                    for (found, expected) in [signal, noise].into_iter().zip(expected) {
                        let found = unit * f64::from(*found);
                        assert!(
                            (found - expected).abs() <= 1e-3 * expected + 1e-12 * unit.max(1e-60),
                            "{block} {kind} group {g}: {found}, not {expected}"
                        );
                    }
                }
            }
        }
    }

    /// Twice the weights have the same codes and twice the scales.
    #[test]
    fn codes_do_not_depend_on_a_power_of_two() {
        let weights: Vec<f32> = gaussian(2048).iter().map(|x| 100.0 * x).collect();
        let twice: Vec<f32> = weights.iter().map(|x| 2.0 * x).collect();
        for block in Block::ALL {
            let decoded = dequantized(block, &quantized(block, Float::F32, f32s(&weights)).1);
            let expected = dequantized(block, &quantized(block, Float::F32, f32s(&twice)).1);
            assert!(decoded.iter().zip(&expected).all(|(x, y)| 2.0 * x == *y), "{block}");
        }
    }

    #[test]
    fn sixteen_bit_weights_are_quantized_like_their_f32s() {
        for block in Block::ALL {
            for dtype in [Float::F16, Float::BF16] {
                let input = data("gaussian", 1024, dtype, 2);
                let wide: Vec<f32> = input.chunks(2).map(|bytes| dtype.decode(bytes)).collect();
                assert_eq!(quantized(block, dtype, &input).1, quantized(block, Float::F32, f32s(&wide)).1);
            }
        }
    }

    /// Weights that f16 scales cannot hold are counted, a block once; those that f32 hardly holds become zeros.
    #[test]
    fn overflow_is_counted_and_underflow_is_zero() {
        for block in Block::ALL {
            for (largest, overflows) in [(1e30, 1), (f32::MAX, 1), (2e9, 1), (1e3, 0), (1e-35, 0), (1e-45, 0)]
            {
                let mut weights = vec![0.0; 3 * block.len()];
                weights[block.len()] = largest;
                weights[block.len() + 1] = -0.3 * largest;
                let (buffers, bytes) = quantized(block, Float::F32, f32s(&weights));
                assert_eq!(buffers.counts[0], overflows, "{block} of {largest}");
                let (first, rest) = bytes.split_at(block.bytes());
                assert_eq!(first, &rest[block.bytes()..], "a neighbour suffered");
                assert!(dequantized(block, first).iter().all(|&x| x == 0.0));
                if largest < 1e-30 {
                    assert!(dequantized(block, rest).iter().all(|&x| x == 0.0));
                }
            }
        }
    }

    /// Types with a lowest weight store it in f16 as well, where it may overflow by itself.
    #[test]
    fn a_lowest_weight_that_overflows_alone_is_counted() {
        for (block, lowest) in [(Block::Q4_1, -1e5), (Block::Q4_K, -1e7)] {
            for (weight, overflows) in [(lowest, 1), (-lowest, 0)] {
                let mut weights = vec![0.0; block.len()];
                weights[0] = weight;
                let (buffers, _) = quantized(block, Float::F32, f32s(&weights));
                assert_eq!(buffers.counts[0], overflows, "{block} of {weight}");
            }
        }
    }
}
