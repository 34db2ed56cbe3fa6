//! Weights from GGUF blocks, as llama.cpp decodes them: `d · q`, `d · q + m`, `d · ls · q − dmin · lm`, `d · sc · q`, then to
//! the nearest value of output_dtype.
//!
//! d, m and dmin are f16, of 11 bits; with steps and codes of 6 and 4, or 8 and 6 bits (a power of two or one bit less), all
//! products fit into an f32 exactly. So only the sum is rounded, and it does not matter whether it is fused. Zeros come out
//! positive. A d, m or dmin that is not finite makes the whole block infinite. Twin: `shaders/block_dequantize.wgsl`.

use super::{Binding, Kernel, TileBuffers, TileParams, arithmetic::*, bits::*, dequantize::store};
use multiversion::multiversion;

/// The step.
pub const KERNEL: Kernel = Kernel {
    name: "block_dequantize",
    wgsl: include_str!("../../shaders/block_dequantize.wgsl"),
    cpu: block_dequantize,
    threads: |p| p.float_words(p.output_dtype),
    team: false,
    touches: |p| {
        vec![
            (Binding::Input, p.block_words() as usize),
            (Binding::Counts, 2),
            (Binding::Output, p.float_words(p.output_dtype) as usize),
        ]
    },
};

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn block_dequantize(params: &TileParams, b: &mut TileBuffers) {
    match params.block {
        Q4_0 => unpack::<Q4_0, 32, 18>(params, b),
        Q4_1 => unpack::<Q4_1, 32, 20>(params, b),
        Q8_0 => unpack::<Q8_0, 32, 34>(params, b),
        Q4_K => unpack::<Q4_K, 256, 144>(params, b),
        _ => unpack::<Q6_K, 256, 210>(params, b),
    }
}

#[inline(always)]
fn unpack<const BLOCK: u32, const LEN: usize, const BYTES: usize>(params: &TileParams, b: &mut TileBuffers) {
    let blocks = params.elements as usize / LEN;
    let bytes: &[u8] = bytemuck::cast_slice(&b.input);
    for (block, bytes) in bytes.as_chunks::<BYTES>().0[..blocks].iter().enumerate() {
        let floats = block_weights::<BLOCK, LEN, BYTES>(bytes);
        store(params, &mut b.counts, &mut b.output, block * LEN, &floats);
    }
}

/// d · q − low, where both are exact. A scale that is not finite makes everything infinite, so that it is counted.
#[inline(always)]
fn decoded(d: u32, q: i32, low: u32) -> u32 {
    if d & INFINITY == INFINITY || low & INFINITY == INFINITY {
        return INFINITY;
    }
    flush((f32::from_bits(multiply(d, (q as f32).to_bits())) - f32::from_bits(low)).to_bits())
}

/// Step and low number `sub` of a Q4_K block, 6 bits each.
#[inline(always)]
fn six_bits(scales: &[u8], sub: usize) -> (u32, u32) {
    let (a, b) = (u32::from(scales[sub & 3]), u32::from(scales[4 + (sub & 3)]));
    if sub < 4 {
        return (a & 63, b & 63);
    }
    let c = u32::from(scales[4 + sub]);
    ((c & 15) | ((a >> 6) << 4), (c >> 4) | ((b >> 6) << 4))
}

#[inline(always)]
fn block_weights<const BLOCK: u32, const LEN: usize, const BYTES: usize>(bytes: &[u8; BYTES]) -> [u32; LEN] {
    let half = |at: usize| f16_to_f32(u32::from(bytes[at]) | u32::from(bytes[at + 1]) << 8);
    let mut weights = [0; LEN];
    match BLOCK {
        Q4_0 | Q4_1 => {
            let (d, low) = (half(0), if BLOCK == Q4_1 { half(2) ^ SIGN } else { 0 });
            let offset = if BLOCK == Q4_0 { 8 } else { 0 };
            for i in 0..16 {
                let q = i32::from(bytes[BYTES - 16 + i]);
                weights[i] = decoded(d, (q & 15) - offset, low);
                weights[i + 16] = decoded(d, (q >> 4) - offset, low);
            }
        }
        Q8_0 => {
            let d = half(0);
            for (weight, &q) in weights.iter_mut().zip(&bytes[2..]) {
                *weight = decoded(d, i32::from(q as i8), 0);
            }
        }
        Q4_K => {
            let (d, dmin) = (half(0), half(2));
            for (sub, weights) in weights.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let (step, low) = six_bits(&bytes[4..16], sub);
                let low = if dmin & INFINITY == INFINITY {
                    INFINITY
                } else {
                    multiply(dmin, (low as f32).to_bits())
                };
                for (weight, &q) in weights.iter_mut().zip(&bytes[16 + sub / 2 * 32..]) {
                    let q = (u32::from(q) >> (sub % 2 * 4)) & 15;
                    *weight = decoded(d, (step * q) as i32, low);
                }
            }
        }
        _ => {
            let d = half(208);
            for (sub, weights) in weights.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let step = i32::from(bytes[192 + sub] as i8);
                let lows = &bytes[sub / 8 * 64 + sub % 4 * 16..];
                let highs = &bytes[128 + sub / 8 * 32 + sub % 2 * 16..];
                for (i, weight) in weights.iter_mut().enumerate() {
                    let low = (lows[i] >> (sub / 4 % 2 * 4)) & 15;
                    let high = (highs[i] >> (sub / 2 % 4 * 2)) & 3;
                    *weight = decoded(d, step * (i32::from(low | (high << 4)) - 32), 0);
                }
            }
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::super::blocks::tests::dequantized;
    use crate::{block::Block, kernels::cases::Random, tensor::Float};

    /// Weight i of a block, by the description of the layout, in f64: every product is exact there.
    fn naive(block: Block, bytes: &[u8], i: usize) -> f32 {
        let half = |at: usize| f64::from(Float::F16.decode(&bytes[at..at + 2]));
        let nibble = |at: usize, high: bool| f64::from(if high { bytes[at] >> 4 } else { bytes[at] & 15 });
        let x = match block {
            Block::Q4_0 => half(0) * (nibble(2 + i % 16, i >= 16) - 8.0),
            Block::Q4_1 => half(0) * nibble(4 + i % 16, i >= 16) + half(2),
            Block::Q8_0 => half(0) * f64::from(bytes[2 + i] as i8),
            Block::Q4_K => {
                let (j, scales) = (i / 32, &bytes[4..16]);
                let (step, low) = if j < 4 {
                    (scales[j] & 63, scales[j + 4] & 63)
                } else {
                    (scales[j + 4] & 15 | scales[j - 4] >> 6 << 4, scales[j + 4] >> 4 | scales[j] >> 6 << 4)
                };
                let q = nibble(16 + i / 64 * 32 + i % 32, i % 64 >= 32);
                half(0) * f64::from(step) * q - half(2) * f64::from(low)
            }
            Block::Q6_K => {
                let (n, part, l) = (i / 128, i % 128 / 32, i % 32);
                let low = nibble(n * 64 + part % 2 * 32 + l, part >= 2);
                let high = f64::from(bytes[128 + n * 32 + l] >> (2 * part) & 3);
                half(208) * f64::from(bytes[192 + i / 16] as i8) * (low + 16.0 * high - 32.0)
            }
        };
        x as f32
    }

    #[test]
    fn blocks_decode_as_their_layout_says() {
        let mut random = Random(4);
        for block in Block::ALL {
            let mut bytes: Vec<u8> = (0..200 * block.bytes()).map(|_| random.next_u64() as u8).collect();
            for bytes in bytes.chunks_mut(block.bytes()) {
                // finite halves
                for at in if block == Block::Q6_K { 209..=209 } else { 1..=3 } {
                    bytes[at] &= 0xbb;
                }
            }
            let found = dequantized(block, &bytes);
            for (i, &x) in found.iter().enumerate() {
                let (number, at) = (i / block.len(), i % block.len());
                let expected = naive(block, &bytes[number * block.bytes()..][..block.bytes()], at);
                assert_eq!(x, expected, "{block} {number}, weight {at}");
            }
        }
    }
}
