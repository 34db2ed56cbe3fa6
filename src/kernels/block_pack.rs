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
