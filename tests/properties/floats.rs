//! Casts.

use crate::made::*;
use monoquant::{
    kernels::{TileBuffers, TileParams, convert},
    tensor::Float,
};
use proptest::{collection::vec, prelude::*};

fn cast(from: Float, to: Float, saturate: bool, bytes: &[u8]) -> TileBuffers {
    let count = (bytes.len() / from.size()) as u32;
    let params = TileParams {
        input_dtype: from as u32,
        output_dtype: to as u32,
        saturate: saturate.into(),
        ..Default::default()
    };
    run(params.with_groups(count, 1), &[&convert::KERNEL], bytes, |_| {})
}

/// What the `half` package says.
fn reference(to: Float, x: f32) -> f32 {
    match to {
        Float::F32 => x,
        Float::F16 => half::f16::from_f32(x).to_f32(),
        Float::BF16 => half::bf16::from_f32(x).to_f32(),
    }
}

properties! {
    /// A cast is to the nearest value, ties to even, for any bits; overflow and what is not finite are counted.
    [convert]
    fn casts_are_those_of_half(from in float(), to in float(), saturate in any::<bool>(), words in vec(any::<u32>(), 1..80)) {
        let count = if from == Float::F32 { words.len() } else { 2 * words.len() };
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let buffers = cast(from, to, saturate, bytes);
        let out: &[u8] = bytemuck::cast_slice(&buffers.output);
        let mut counts = [0, 0];
        for i in 0..count {
            let (x, found) = (from.decode(&bytes[i * from.size()..]), to.decode(&out[i * to.size()..]));
            let expected = reference(to, x);
            if !x.is_finite() {
                counts[1] += 1;
                prop_assert!(found == x || (found.is_nan() && x.is_nan()));
                continue;
            }
            let overflows = expected.is_infinite();
            counts[0] += u32::from(overflows);
            let expected = if overflows && saturate { to.max().copysign(x) } else { expected };
            prop_assert_eq!(found.to_bits(), expected.to_bits(), "{:e}", x);
        }
        prop_assert_eq!(buffers.counts, counts);
    }

    /// Wider and back is the same bytes.
    [convert]
    fn casts_to_f32_lose_nothing(from in float(), halves in vec(any::<u16>(), 2..80)) {
        let mut bytes: Vec<u8> = bytemuck::cast_slice::<u16, u8>(&halves[..halves.len() / 2 * 2]).to_vec();
        // NaN may come back as another
        bytes.chunks_mut(from.size()).filter(|b| !from.decode(b).is_finite()).for_each(|b| b.fill(1));
        let wide = cast(from, Float::F32, false, &bytes);
        let back = cast(Float::F32, from, false, bytemuck::cast_slice(&wide.output));
        prop_assert_eq!(&bytemuck::cast_slice::<u32, u8>(&back.output)[..bytes.len()], &bytes[..]);
    }
}
