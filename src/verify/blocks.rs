//! What a weight may be for what a GGUF block says of it: code · step − low, with step and low as they are stored.
//!
//! Every bound follows from how the block is made ([`crate::kernels::block_scales`], and llama.cpp for the first three):
//!
//! - Q4_K and Q6_K: codes are made with the stored step and low, so |x − x̂| ≤ step/2; the lowest and the highest code stand
//!   for all beyond them. A group whose step is 0 has codes 0.
//! - Q8_0, Q4_0, Q4_1: codes are made with a step d before it is rounded to f16, by h (half a unit in its last place) at most,
//!   so |x − x̂| ≤ (d + h)/2 + |code| · h. Q4_1's low is rounded, too, by its own h. Q4_0 has no code 8, so that of the side
//!   that holds the largest weight's opposite, up to 8 steps, the last one is cut. The others cut nothing.
//!
//! Arithmetic in f32 adds at most 2⁻²² of the numbers that are multiplied: one subtraction, one inverse, one product, 2⁻²⁴
//! each; and for Q4_0 and Q4_1, which round by adding 8.5 and 0.5, 2⁻²⁰ of a step.

use super::bounds::Outcome;
use crate::{block::Block, tensor::Float};

/// What a block says of a weight: code · step − low.
#[derive(Debug, Clone, Copy, Default)]
struct Stored {
    step: f64,
    code: i32,
    low: f64,
}

fn half(bytes: &[u8], at: usize) -> f64 {
    f64::from(Float::F16.decode(&bytes[at..at + 2]))
}

/// Half a unit in the last place of an f16.
fn half_place(x: f64) -> f64 {
    let exponent = ((x.abs().to_bits() >> 52) as i32 - 1023).max(-14);
    2f64.powi(exponent - 11)
}

/// Weight `i` of a block, as the layout says.
fn stored(block: Block, bytes: &[u8], i: usize) -> Stored {
    let nibble = |byte: u8, high: bool| i32::from(if high { byte >> 4 } else { byte & 15 });
    match block {
        Block::Q4_0 => {
            Stored { step: half(bytes, 0), code: nibble(bytes[2 + i % 16], i >= 16) - 8, low: 0.0 }
        }
        Block::Q4_1 => {
            Stored { step: half(bytes, 0), code: nibble(bytes[4 + i % 16], i >= 16), low: -half(bytes, 2) }
        }
        Block::Q8_0 => Stored { step: half(bytes, 0), code: i32::from(bytes[2 + i] as i8), low: 0.0 },
        Block::Q4_K => {
            let (sub, scales) = (i / 32, &bytes[4..16]);
            // 6 bits each: of the last four, the upper two lie above those of the first four
            let (step, low) = match sub {
                0..4 => (scales[sub] & 63, scales[sub + 4] & 63),
                _ => (
                    (scales[sub + 4] & 15) | (scales[sub - 4] >> 6) << 4,
                    (scales[sub + 4] >> 4) | (scales[sub] >> 6) << 4,
                ),
            };
            Stored {
                step: half(bytes, 0) * f64::from(step),
                code: nibble(bytes[16 + sub / 2 * 32 + i % 32], sub % 2 == 1),
                low: half(bytes, 2) * f64::from(low),
            }
        }
        Block::Q6_K => {
            let (part, at) = (i / 128, i % 128);
            let low = nibble(bytes[part * 64 + at % 64], at >= 64);
            let high = i32::from((bytes[128 + part * 32 + at % 32] >> (at / 32 * 2)) & 3);
            Stored {
                step: half(bytes, 208) * f64::from(bytes[192 + i / 16] as i8),
                code: (low | high << 4) - 32,
                low: 0.0,
            }
        }
    }
}

/// How far a weight may lie from what its code stands for: down and up in the direction of the step.
fn reach(block: Block, of: Stored, x: f64) -> [f64; 2] {
    let Stored { step, code, low } = of;
    let (size, count, place) = (step.abs(), f64::from(code.abs()), half_place(step));
    let rounding = 2f64.powi(-22) * x.abs();
    let sum = 0.5 + 2f64.powi(-20);
    match block {
        Block::Q8_0 => [(size + place) * 0.5 + count * place + rounding; 2],
        Block::Q4_0 => {
            let usual = (size + place) * sum + count * place + rounding;
            [usual, if code == 7 { size + 8.0 * place + rounding } else { usual }]
        }
        Block::Q4_1 => {
            let moved = half_place(low);
            let rounding = rounding + 2f64.powi(-22) * (low.abs() + moved);
            [(size + place) * sum + count * place + moved + rounding; 2]
        }
        Block::Q4_K | Block::Q6_K => {
            let (lowest, highest) = if block == Block::Q4_K { (0, 15) } else { (-32, 31) };
            let usual = size * 0.5 + rounding + 2f64.powi(-22) * low.abs();
            let end = |code: i32, last: i32| if code == last { f64::INFINITY } else { usual };
            match step == 0.0 && code == 0 {
                true => [f64::INFINITY; 2],
                false => [end(code, lowest), end(code, highest)],
            }
        }
    }
}

/// Checks a block whose first weight has this index.
pub fn check(block: Block, bytes: &[u8], weights: &[f32], start: u64, outcome: &mut Outcome) {
    for (i, &weight) in weights.iter().enumerate() {
        // what is below the normals counts as zero
        let x = if weight.is_subnormal() { 0.0 } else { f64::from(weight) };
        let of = stored(block, bytes, i);
        let value = f64::from(of.code) * of.step - of.low;
        let away = (x - value) * if of.step.is_sign_negative() { -1.0 } else { 1.0 };
        let [down, up] = reach(block, of, x);
        // a value that is not finite lies nowhere
        let right = away >= -down && away <= up && of.step.is_finite() && of.low.is_finite();
        let idle = of.step == 0.0 && of.code != 0 && matches!(block, Block::Q4_K | Block::Q6_K);
        if !right || idle {
            outcome.wrong(start + i as u64, || {
                let expected = if idle {
                    "code 0, as the step of its group is 0".to_owned()
                } else {
                    format!("from {:e} below to {:e} above it, and it is {x:e}", down, up)
                };
                (format!("code {} in steps of {:e} is {value:e}", of.code, of.step), expected)
            });
        } else if away.abs() <= of.step.abs() * 0.5 || of.step == 0.0 {
            let steps = if of.step == 0.0 { 0.0 } else { away.abs() / of.step.abs() };
            outcome.worst = outcome.worst.max(steps);
        } else if down.is_infinite() || up.is_infinite() || (block == Block::Q4_0 && of.code == 7) {
            outcome.clipped += 1;
        } else {
            outcome.worst = outcome.worst.max(away.abs() / of.step.abs());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{
        blocks::tests::{dequantized, quantized},
        cases::data,
    };

    /// What is read here of a block is what the kernel decodes, and every bound holds where the encoder was at work.
    #[test]
    fn blocks_are_read_as_the_kernel_does_and_within_their_bounds() {
        for block in Block::ALL {
            for kind in ["gaussian", "positive", "equal", "ties", "zeros", "subnormal"] {
                for dtype in Float::ALL {
                    let input = data(kind, 2048, dtype, 9);
                    let weights: Vec<f32> = input.chunks(dtype.size()).map(|b| dtype.decode(b)).collect();
                    let (buffers, bytes) = quantized(block, dtype, &input);
                    assert_eq!(buffers.counts[0], 0, "f16 holds the scales");
                    let decoded = dequantized(block, &bytes);
                    let mut outcome = Outcome::default();
                    for (b, bytes) in bytes.chunks_exact(block.bytes()).enumerate() {
                        let at = b * block.len();
                        for i in 0..block.len() {
                            let of = stored(block, bytes, i);
                            let value = (f64::from(of.code) * of.step - of.low) as f32;
                            assert_eq!(value, decoded[at + i], "{block} {kind} {}", at + i);
                        }
                        check(block, bytes, &weights[at..at + block.len()], at as u64, &mut outcome);
                    }
                    assert_eq!(outcome.wrong, 0, "{block} {kind} {:?}: {:?}", dtype.dtype(), outcome.first);
                }
            }
        }
    }
}
