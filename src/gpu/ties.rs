//! Cases on ties of f16 and bf16: the short harness meets them in some kernels only, and a job runs its own alone.

use crate::{
    backend::{Pass, Tile},
    kernels::{
        Binding, Kernel, TileParams,
        cases::{Case, Random},
        convert, dequantize,
    },
    tensor::Float,
};

const WANTS: &[Binding] = &[Binding::Output, Binding::Counts];
const VALUES: u32 = 512;

/// Casts and dequantization that end on ties, with odd and even neighbours.
pub(super) fn cases() -> Vec<Case> {
    Float::ALL
        .into_iter()
        .flat_map(|output| [cast(Float::F32, output), cast(Float::F16, output), decoded(output)])
        .collect()
}

/// The lowest bits of an f32 that this dtype rounds away.
fn rounded(output: Float) -> u32 {
    match output {
        Float::F32 => 0,
        Float::F16 => 13,
        Float::BF16 => 16,
    }
}

fn cast(input: Float, output: Float) -> Case {
    let mut random = Random(u64::from(input as u32));
    let mut bytes = Vec::new();
    for _ in 0..VALUES {
        let word = random.next_u64() as u32;
        // within the normal numbers of f16
        let bits = (word & 0x807f_ffff) | (113 + (word >> 23) % 28) << 23;
        let kept = bits & !((1 << rounded(output)) - 1);
        let tie = if output == Float::F32 { 0 } else { 1 << (rounded(output) - 1) };
        input.encode(f32::from_bits(kept | tie), &mut bytes);
    }
    let params = TileParams { input_dtype: input as u32, output_dtype: output as u32, ..Default::default() };
    let name = format!("cast ties {} to {}", input.short_name(), output.short_name());
    case(name, params.with_groups(VALUES, 1), &convert::KERNEL, Vec::new(), bytes)
}

/// Codes 1 and 3 times a scale whose lowest bit is half a step of the output.
fn decoded(output: Float) -> Case {
    let params = TileParams { output_dtype: output as u32, row_len: VALUES, bits: 8, ..Default::default() }
        .with_groups(VALUES, 8)
        .with_grid(8, false, false);
    let half = if output == Float::F32 { 1 } else { 1 << (rounded(output) - 1) };
    let scales = (0..params.groups).map(|g| ((120 + g % 8) << 23) | (half * (1 + 2 * (g / 8)))).collect();
    let preload = vec![(Binding::Scales, scales), (Binding::ZeroPoints, vec![0; params.groups as usize])];
    let bytes = (0..VALUES).map(|i| [1, 3, 255, 253][i as usize % 4]).collect();
    case(format!("dequantize ties to {}", output.short_name()), params, &dequantize::KERNEL, preload, bytes)
}

fn case(
    name: String,
    params: TileParams,
    kernel: &'static Kernel,
    preload: Vec<(Binding, Vec<u32>)>,
    input: Vec<u8>,
) -> Case {
    let pass = Pass { params, kernels: vec![kernel], preload, wants: WANTS };
    Case { name, tile: Tile::one(0, input.len(), pass), input }
}
