//! The bytes of GGUF blocks, one block after the other; the last word is filled up with zeros.
//!
//! A code is the weight, less the offset where the type has one, times the f32 nearest to 1 / step (see
//! [`super::block_scales`]); halves go away from zero. Q8_0, Q4_0 and Q4_1 so get the bytes of gguf-py, the reference, for
//! weights that are zero or normal (it may keep the sign of a zero minimum). Twin: `shaders/block_pack.wgsl`.

use super::{Binding, Kernel, TileBuffers, TileParams, arithmetic::*, bits::*};
use multiversion::multiversion;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "block_pack",
    wgsl: include_str!("../../shaders/block_pack.wgsl"),
    cpu: block_pack,
    threads: TileParams::block_words,
    team: false,
    touches: |p| {
        let stored = if p.block >= Q4_K { p.groups } else { 0 };
        vec![
            (Binding::Input, p.float_words(p.input_dtype) as usize),
            (Binding::Scales, 4 * p.groups as usize),
            (Binding::ZeroPoints, stored as usize),
            (Binding::Output, p.block_words() as usize),
        ]
    },
};

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn block_pack(params: &TileParams, b: &mut TileBuffers) {
    match params.block {
        Q4_0 => pack::<Q4_0, 32, 18>(params, b),
        Q4_1 => pack::<Q4_1, 32, 20>(params, b),
        Q8_0 => pack::<Q8_0, 32, 34>(params, b),
        Q4_K => pack::<Q4_K, 256, 144>(params, b),
        _ => pack::<Q6_K, 256, 210>(params, b),
    }
}

#[inline(always)]
fn pack<const BLOCK: u32, const LEN: usize, const BYTES: usize>(params: &TileParams, b: &mut TileBuffers) {
    let (groups, group_len) = (params.groups as usize, params.group_len as usize);
    if let Some(word) = b.output.get_mut((params.block_words() as usize).wrapping_sub(1)) {
        *word = 0;
    }
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut b.output);
    let blocks = params.elements as usize / LEN;
    for (block, bytes) in bytes.as_chunks_mut::<BYTES>().0[..blocks].iter_mut().enumerate() {
        let group = block * LEN / group_len;
        let mut weights = [0; LEN];
        load_weights(params, &b.input, block * LEN, &mut weights);
        let mut stored = [0u8; LEN];
        for (i, (xs, qs)) in weights.chunks(group_len).zip(stored.chunks_mut(group_len)).enumerate() {
            let (inverse, offset) = (b.scales[groups + group + i], b.scales[2 * groups + group + i]);
            for (q, &x) in qs.iter_mut().zip(xs) {
                let code = if inverse == 0 { 0 } else { block_code::<BLOCK>(params, x, inverse, offset) };
                *q = (code + params.code_offset) as u8;
            }
        }
        let halves = b.scales[3 * groups + group].to_le_bytes();
        match BLOCK {
            Q4_0 | Q4_1 => {
                bytes[..BYTES - 16].copy_from_slice(&halves[..BYTES - 16]);
                for i in 0..16 {
                    bytes[BYTES - 16 + i] = stored[i] | (stored[i + 16] << 4);
                }
            }
            Q8_0 => {
                bytes[..2].copy_from_slice(&halves[..2]);
                bytes[2..].copy_from_slice(&stored);
            }
            Q4_K => {
                bytes[..4].copy_from_slice(&halves);
                let scales: &[i32; 8] = b.zero_points[group..].first_chunk().expect("eight groups a block");
                for (i, byte) in bytes[4..16].iter_mut().enumerate() {
                    *byte = six_bits(scales, i);
                }
                for (qs, bytes) in stored.as_chunks::<64>().0.iter().zip(bytes[16..].chunks_mut(32)) {
                    for i in 0..32 {
                        bytes[i] = qs[i] | (qs[i + 32] << 4);
                    }
                }
            }
            _ => {
                let (low, rest) = bytes.split_at_mut(128);
                let (high, rest) = rest.split_at_mut(64);
                for (half, qs) in stored.as_chunks::<128>().0.iter().enumerate() {
                    for i in 0..64 {
                        low[64 * half + i] = (qs[i] & 15) | (qs[i + 64] << 4);
                    }
                    for i in 0..32 {
                        high[32 * half + i] = (qs[i] >> 4)
                            | (qs[i + 32] >> 4 << 2)
                            | (qs[i + 64] >> 4 << 4)
                            | (qs[i + 96] >> 4 << 6);
                    }
                }
                for (byte, &step) in rest.iter_mut().zip(&b.zero_points[group..group + 16]) {
                    *byte = step as u8;
                }
                rest[16..].copy_from_slice(&halves[..2]);
            }
        }
    }
}

/// Byte `at` of the eight steps and lows of 6 bits each in a Q4_K block.
#[inline(always)]
fn six_bits(scales: &[i32; 8], at: usize) -> u8 {
    let (a, b) = (scales[at & 3] as u32, scales[(at & 3) + 4] as u32);
    let byte = match at {
        0..4 => (a & 63) | (((b >> 4) & 3) << 6),
        4..8 => ((a >> 8) & 63) | (((b >> 12) & 3) << 6),
        _ => (b & 15) | (((b >> 8) & 15) << 4),
    };
    byte as u8
}

#[cfg(test)]
mod tests {
    use super::super::blocks::tests::{f32s, quantized};
    use crate::{block::Block, kernels::cases::Random, tensor::Float};

    /// The reference, in the words of gguf-py.
    fn reference(block: Block, xs: &[f32]) -> Vec<u8> {
        let inverse = |d: f32| if d == 0.0 { 0.0 } else { 1.0 / d };
        let mut bytes = Vec::new();
        match block {
            Block::Q8_0 => {
                let d = xs.iter().fold(0f32, |a, x| a.max(x.abs())) / 127.0;
                Float::F16.encode(d, &mut bytes);
                bytes.extend(xs.iter().map(|x| (x * inverse(d)).round() as i8 as u8));
            }
            Block::Q4_0 => {
                let largest = xs.iter().fold(0f32, |a, &x| if x.abs() > a.abs() { x } else { a });
                let d = largest / -8.0;
                Float::F16.encode(d, &mut bytes);
                let codes: Vec<u8> = xs.iter().map(|x| ((x * inverse(d) + 8.5) as u8).min(15)).collect();
                bytes.extend((0..16).map(|i| codes[i] | codes[i + 16] << 4));
            }
            _ => {
                let min = xs.iter().fold(f32::INFINITY, |a, &x| a.min(x));
                let d = (xs.iter().fold(f32::NEG_INFINITY, |a, &x| a.max(x)) - min) / 15.0;
                Float::F16.encode(d, &mut bytes);
                Float::F16.encode(min, &mut bytes);
                let codes: Vec<u8> =
                    xs.iter().map(|x| (((x - min) * inverse(d) + 0.5) as u8).min(15)).collect();
                bytes.extend((0..16).map(|i| codes[i] | codes[i + 16] << 4));
            }
        }
        bytes
    }

    #[test]
    fn simple_blocks_have_the_bytes_of_the_reference() {
        let mut random = Random(9);
        let mut weights = Vec::new();
        for i in 0..1 << 13 {
            let scale = [0.02, 1.0, 0.25, 3e-5, 7e-9, 0.0][i % 6];
            let grid = [0.0, 0.5, 1.0 / 16.0][i / 6 % 3]; // weights on a grid are often halves of a step
            weights.extend((0..32).map(|j| {
                let x = match i % 5 {
                    0 => random.uniform() * 8.0,
                    1 => random.uniform() * -16.0,
                    _ => random.gaussian() * 4.0,
                };
                let x = if grid > 0.0 { (x / grid).round() * grid } else { x };
                scale * if j == 0 && i % 7 == 0 { -8.0 } else { x } + 0.0
            }));
        }
        for block in [Block::Q4_0, Block::Q4_1, Block::Q8_0] {
            let (_, bytes) = quantized(block, Float::F32, f32s(&weights));
            for (i, (xs, found)) in weights.chunks(32).zip(bytes.chunks(block.bytes())).enumerate() {
                assert_eq!(found, reference(block, xs), "{block} {i}: {xs:?}");
            }
        }
    }

    /// What gguf-py makes of 32 weights.
    #[test]
    fn known_blocks() {
        let weights: Vec<f32> = (0..32).map(|i| ((i * 37 % 64) as f32 - 31.5) / 16.0).collect();
        for (block, expected) in KNOWN {
            let (_, bytes) = quantized(block, Float::F32, f32s(&weights));
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, expected, "{block}");
        }
    }

    const KNOWN: [(Block, &str); 3] = [
        (Block::Q4_0, "e03340d973fc952ec851ea731da63fc862fb"),
        (Block::Q4_1, "3334e0bf40d962fb952eb751da730c953ec851ea"),
        (Block::Q8_0, "f0238116a93ed267fa8d22b54bde7306992ec257ea7f12a53ace63f6891eb147da6f"),
    ];
}
