//! Tensors of GGUF blocks, which hold their own scales.

use super::Layers;
use crate::{
    backend::run_on_cpu,
    block::Block,
    error::Result,
    kernels::TileBuffers,
    reader::{Checkpoint, Source},
    sweeps::{Active, Kind},
    tensor::Float,
    tiles::{Band, Piece, Sweep},
};

/// A tensor of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockLayer {
    /// Its name.
    pub name: String,
    /// Dimensions in weights.
    pub shape: Vec<usize>,
    /// Its number.
    pub tensor: usize,
    /// The type of its blocks.
    pub block: Block,
}

impl BlockLayer {
    /// Number of weights.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }

    /// Weights a row: the last dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows of all other dimensions.
    pub fn rows(&self) -> usize {
        self.elements() as usize / self.cols().max(1)
    }
}

/// What a GGUF model consists of.
pub(super) fn layers(checkpoint: &Checkpoint) -> Layers {
    let mut layers = Layers::default();
    for (tensor, t) in checkpoint.tensors().iter().enumerate() {
        match t.block {
            Some(block) => {
                layers.blocks.push(BlockLayer { name: t.info.name.clone(), shape: t.shape(), tensor, block });
            }
            None => layers.rest.push(tensor),
        }
    }
    layers
}

/// Weights of a piece that consists of whole blocks, on the CPU.
pub fn decode(source: &Source, layer: &BlockLayer, cols: usize, piece: Piece) -> Result<Vec<f32>> {
    let block = layer.block;
    let band = Band { pieces: vec![piece], spans: false, sweeps: &[Sweep::Quantize] };
    let kind = Kind::DequantizeBlocks { block, to: Float::F32, saturate: false };
    let tile = Active::new(kind, 0, band).tile(0, 0);
    let mut buffers = TileBuffers::default();
    buffers.resize(&tile.lengths());
    let input: &mut [u8] = bytemuck::cast_slice_mut(&mut buffers.input);
    source.read(layer.tensor, block.bytes_for(piece.start(cols)), &mut input[..tile.input_bytes])?;
    run_on_cpu(&tile.passes[0], &mut buffers);
    Ok(buffers.output[..piece.elements()].iter().map(|&x| f32::from_bits(x)).collect())
}

/// Number of blocks whose scale or minimum is not finite, and the first of them.
pub fn not_finite(source: &Source, layer: &BlockLayer) -> Result<Option<(u64, u64)>> {
    const AT_ONCE: u64 = 1 << 14;
    let halves: &[usize] = match layer.block {
        Block::Q4_0 | Block::Q8_0 => &[0],
        Block::Q4_1 | Block::Q4_K => &[0, 2],
        Block::Q6_K => &[208],
    };
    let size = layer.block.bytes();
    let blocks = layer.elements() / layer.block.len() as u64;
    let (mut first, mut count, mut buffer) = (None, 0, Vec::new());
    for at in (0..blocks).step_by(AT_ONCE as usize) {
        buffer.resize(AT_ONCE.min(blocks - at) as usize * size, 0);
        source.read(layer.tensor, at * size as u64, &mut buffer)?;
        for (i, bytes) in buffer.chunks_exact(size).enumerate() {
            if halves.iter().any(|&h| !Float::F16.decode(&bytes[h..h + 2]).is_finite()) {
                first.get_or_insert(at + i as u64);
                count += 1;
            }
        }
    }
    Ok(first.map(|first| (count, first)))
}
