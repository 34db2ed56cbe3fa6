//! Cases on which twins must agree, and the harness that compares a backend with the Rust twins, byte for byte.
//!
//! Every case is a whole sequence of kernels, and every buffer that they touch is compared, so each kernel is tested on
//! the outputs of the ones before it. Only `errors` has a tolerance: it is outside the byte contract.

mod blocks;

use super::{ALL, Binding, CHUNK, Kernel, TileBuffers, TileParams, arithmetic::ordered, bits::*};
use crate::{
    backend::{Backend, Pass, Results, Tile, run_passes},
    error::{Error, Result},
    tensor::Float,
};

/// A tile with its input, and what it is called.
#[derive(Debug, Clone)]
pub struct Case {
    /// For messages: shape, scheme, data.
    pub name: String,
    /// Parameters, kernels, preloaded buffers.
    pub tile: Tile,
    /// The tile's input.
    pub input: Vec<u8>,
}

/// What a comparison found.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Cases that were run.
    pub cases: usize,
    /// Words that were compared.
    pub words: usize,
    /// The first difference in each case that differs.
    pub differences: Vec<String>,
}

/// A small generator, the same everywhere (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// About Gaussian, with variance 1.
    pub fn gaussian(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }
}

/// Data that the harness feeds to kernels.
pub const DATA: [&str; 10] = [
    "gaussian",
    "zeros",
    "equal",
    "signed zeros",
    "subnormal",
    "ties",
    "extremes",
    "tiny",
    "positive",
    "bits",
];

/// `count` values of one kind, as stored in `dtype`.
pub fn data(kind: &str, count: usize, dtype: Float, seed: u64) -> Vec<u8> {
    let mut random = Random(seed ^ (count as u64) << 20);
    let mut out = Vec::with_capacity(count * dtype.size());
    for i in 0..count {
        let value = match kind {
            "gaussian" => random.gaussian() * 0.02,
            "zeros" => 0.0,
            "equal" => 0.3,
            "signed zeros" => [0.0, -0.0][i % 2],
            "subnormal" => f32::from_bits((random.next_u64() as u32) & 0x80ff_ffff),
            // every 16th value fixes the range, so that the others lie on halves and integers of the scale
            "ties" => {
                [7.5, -7.5, 127.5][i / 48 % 3] * if i % 16 == 0 { 1.0 } else { (i % 61) as f32 / 60.0 - 0.5 }
            }
            "extremes" => {
                let big = dtype.max() * 0.99;
                [big, -big, 1.0, -1e-3, big / 3.0, 0.0][(random.next_u64() % 6) as usize]
            }
            "tiny" => random.gaussian() * f32::from_bits((20 + (i as u32 / 64) * 7 % 80) << 23),
            "positive" => 5.0 + random.uniform(),
            // any bit pattern that is finite
            _ => {
                let word = random.next_u64();
                match dtype {
                    Float::F32 => f32::from_bits(word as u32),
                    dtype => dtype.decode(&(word as u16).to_le_bytes()),
                }
            }
        };
        dtype.encode(if value.is_finite() { value } else { 1.0 }, &mut out);
    }
    // a value may have overflowed its dtype when it was encoded
    for bytes in out.chunks_mut(dtype.size()) {
        if !dtype.decode(bytes).is_finite() {
            bytes.fill(0);
        }
    }
    out
}

const QUANTIZE: [&Kernel; 4] =
    [&super::minmax::KERNEL, &super::qparams::KERNEL, &super::quantize_pack::KERNEL, &super::error::KERNEL];
const SEARCH: [&Kernel; 6] = [
    &super::minmax::KERNEL,
    &super::search::KERNEL,
    &super::refine::KERNEL,
    &super::qparams::KERNEL,
    &super::quantize_pack::KERNEL,
    &super::error::KERNEL,
];
const CLIP: [&Kernel; 6] = [
    &super::minmax::KERNEL,
    &super::histogram::KERNEL,
    &super::clip_range::KERNEL,
    &super::qparams::KERNEL,
    &super::quantize_pack::KERNEL,
    &super::error::KERNEL,
];
const ALL_OUTPUTS: &[Binding] = &[
    Binding::Ranges,
    Binding::Counts,
    Binding::Scales,
    Binding::ZeroPoints,
    Binding::Output,
    Binding::Errors,
];

/// Rows, elements a row, elements a group (0 is the whole tile).
const SHAPES: [(u32, u32, u32); 10] = [
    (8, 256, 128),
    (16, 64, 64),
    (3, 100, 100),
    (5, 24, 8),
    (7, 9, 3),
    (1, 5000, 5000),
    (4, 1030, 1030),
    (6, 50, 0),
    (1, 1, 1),
    // more groups than twins take together, a few more
    (100, 88, 8),
];

/// All cases, or with `short` a few that take no time and still fail where a driver's arithmetic differs.
pub fn cases(short: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes = if short { &SHAPES[..4] } else { &SHAPES[..] };
    for dtype in Float::ALL {
        for (n, &(rows, row_len, group_len)) in shapes.iter().enumerate() {
            let elements = rows * row_len;
            let group_len = if group_len == 0 { elements } else { group_len };
            for (kind_number, kind) in DATA.iter().enumerate() {
                if short && !["gaussian", "ties", "tiny", "bits"].contains(kind) {
                    continue;
                }
                // the scheme turns with shape and data, so that a short list meets every combination of scheme and dtype
                for turn in 0..if short { 2 } else { 8 } {
                    let turn = turn + kind_number * 3 + n;
                    let (bits, symmetric, packed) =
                        (if turn & 1 == 0 { 4 } else { 8 }, turn & 2 == 0, turn & 4 == 0);
                    let scale_dtype = [dtype, Float::F16][usize::from(turn % 5 == 0)];
                    let params = TileParams {
                        input_dtype: dtype as u32,
                        scale_dtype: scale_dtype as u32,
                        row_len: if packed || bits == 4 { row_len } else { elements },
                        channel_len: row_len.max(group_len),
                        bins: 16,
                        ..Default::default()
                    }
                    .with_groups(elements, group_len)
                    .with_grid(bits, symmetric, packed || bits == 4);
                    let input = data(kind, elements as usize, dtype, turn as u64);
                    let kernels: &[_] = [&QUANTIZE[..], &SEARCH[..], &CLIP[..]][turn % 3];
                    let mut preload = Vec::new();
                    let params = match turn % 3 {
                        1 => params.with_search(turn % 2 == 1, group_len as usize),
                        2 => {
                            let edges = (0..=16).map(|b| ordered((b as f32 * 0.005 - 0.04f32).to_bits()));
                            let edges: Vec<u32> = edges.collect();
                            preload.push((Binding::Edges, edges.repeat(params.channels() as usize)));
                            params
                        }
                        _ => params,
                    };
                    let name = format!(
                        "{} {rows}x{row_len} group {group_len} int{bits} {}{} {kind}",
                        dtype.short_name(),
                        if symmetric { "symmetric" } else { "asymmetric" },
                        ["", " search", " clip"][turn % 3],
                    );
                    for (ending, kernels, params) in fused(kernels, params) {
                        cases.push(Case {
                            name: format!("{name}{ending}"),
                            tile: tile(params, &kernels, preload.clone(), ALL_OUTPUTS, input.len()),
                            input: input.clone(),
                        });
                    }
                    cases.push(Case {
                        name,
                        tile: tile(params, kernels, preload, ALL_OUTPUTS, input.len()),
                        input,
                    });
                }
            }
        }
        cases.extend(conversions(dtype, short));
        cases.extend(blocks::blocks(dtype, short));
    }
    cases
}

/// The same with the kernel that does several steps at once: all of them, or the last ones.
fn fused(
    kernels: &[&'static Kernel],
    params: TileParams,
) -> Vec<(&'static str, Vec<&'static Kernel>, TileParams)> {
    if !super::quantize::suits(&params) {
        return vec![];
    }
    let before = &kernels[..kernels.len() - 2]; // but for codes and errors
    let last = [before, &[&super::quantize::KERNEL]].concat();
    let last = (", scales first", last, TileParams { scaled: 1, ..params });
    let all = (", fused", vec![&super::quantize::KERNEL], params);
    if kernels == &QUANTIZE[..] { vec![last, all] } else { vec![last] }
}

/// Casts and dequantization.
fn conversions(dtype: Float, short: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for output in Float::ALL {
        for (kind, elements) in [("bits", 1001), ("subnormal", 300), ("extremes", 77), ("gaussian", 64)] {
            for saturate in [0, 1] {
                let params = TileParams {
                    input_dtype: dtype as u32,
                    output_dtype: output as u32,
                    saturate,
                    ..Default::default()
                }
                .with_groups(elements, 1);
                let input = data(kind, elements as usize, dtype, 7);
                let name = format!("cast {} to {} {kind}", dtype.short_name(), output.short_name());
                let kernels: [&Kernel; 1] = [&super::convert::KERNEL];
                let wants = &[Binding::Output, Binding::Counts];
                cases.push(Case { name, tile: tile(params, &kernels, vec![], wants, input.len()), input });
                if short {
                    break;
                }
            }
        }
        for (bits, packed) in [(4, true), (8, true), (8, false)] {
            let params = TileParams {
                input_dtype: dtype as u32,
                output_dtype: output as u32,
                row_len: 26,
                bits,
                ..Default::default()
            }
            .with_groups(26 * 6, 13)
            .with_grid(bits, false, packed);
            let mut random = Random(bits.into());
            let words: Vec<u32> = (0..params.code_words()).map(|_| random.next_u64() as u32).collect();
            let scales = (0..params.groups)
                .map(|_| ((random.next_u64() as u32) & 0x83ff_ffff) + 0x3a00_0000)
                .collect();
            let zero_points = (0..params.groups).map(|_| (random.next_u64() % 16) as i32 - 8);
            let zero_points = zero_points.map(|z| z as u32).collect();
            let preload = vec![(Binding::Scales, scales), (Binding::ZeroPoints, zero_points)];
            let input: Vec<u8> = bytemuck::cast_slice(&words).to_vec();
            let kernels: [&Kernel; 1] = [&super::dequantize::KERNEL];
            let wants = &[Binding::Output, Binding::Counts];
            let name = format!("dequantize int{bits} to {}", output.short_name());
            cases.push(Case { name, tile: tile(params, &kernels, preload, wants, input.len()), input });
        }
    }
    cases
}

fn tile(
    params: TileParams,
    kernels: &[&'static Kernel],
    preload: Vec<(Binding, Vec<u32>)>,
    wants: &'static [Binding],
    input_bytes: usize,
) -> Tile {
    Tile::one(0, input_bytes, Pass { params, kernels: kernels.to_vec(), preload, wants })
}

/// Runs `cases` on a backend and compares every buffer with the Rust twins'.
pub fn compare(backend: &mut dyn Backend, cases: &[Case]) -> Result<Outcome> {
    compare_with(backend, cases, |_, _| {})
}

/// [`compare`], with a chance to disturb what the backend returned: the harness's own test.
pub fn compare_with(
    backend: &mut dyn Backend,
    cases: &[Case],
    mut disturb: impl FnMut(Binding, &mut Vec<u32>),
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut check = |tile: Tile, results: &[Results]| -> Result<()> {
        let case = &cases[tile.tag as usize];
        let mut expected = vec![TileBuffers::default(); tile.passes.len()];
        expected.iter_mut().for_each(|buffers| buffers.resize(&tile.lengths()));
        bytemuck::cast_slice_mut(&mut expected[0].input)[..case.input.len()].copy_from_slice(&case.input);
        run_passes(&case.tile, &mut expected);
        outcome.cases += 1;
        for (number, pass) in tile.passes.iter().enumerate() {
            let lengths = pass.lengths();
            for &binding in pass.wants {
                let mut got = results[number].get(binding).to_vec();
                disturb(binding, &mut got);
                let expected = &expected[number].words(binding)[..lengths.of(binding)];
                outcome.words += expected.len();
                let differs = if binding == Binding::Errors { differs_much } else { differs };
                if let Some(i) =
                    (0..expected.len()).find(|&i| got.get(i).is_none_or(|&g| differs(g, expected[i])))
                {
                    let got = got.get(i).map_or("nothing".into(), |g| format!("{g:#010x}"));
                    outcome.differences.push(format!(
                        "{}: {}[{i}] is {got}, the CPU has {:#010x} (kernels {:?})",
                        case.name,
                        binding.name(),
                        expected[i],
                        pass.kernels
                    ));
                    return Ok(());
                }
            }
        }
        Ok(())
    };
    for (i, case) in cases.iter().enumerate() {
        if backend.in_flight() == backend.depth() {
            backend.collect(&mut check)?;
        }
        backend.submit(Tile { tag: i as u64, ..case.tile.clone() }, &mut |bytes| {
            bytes.copy_from_slice(&case.input);
            Ok(())
        })?;
    }
    while backend.collect(&mut check)? {}
    if outcome.words == 0 {
        return Err(Error::Device("the comparison of kernels compared nothing".into()));
    }
    Ok(outcome)
}

fn differs(a: u32, b: u32) -> bool {
    a != b
}

/// 0.01 dB, which is what a report shows.
fn differs_much(a: u32, b: u32) -> bool {
    let (a, b) = (f32::from_bits(a), f32::from_bits(b));
    // sums may be infinite or NaN on both sides where a scale is far too small for its weights
    // and where codes are exact, the rounding of a quotient is all that there is
    !((a - b).abs() <= 0.002 * b.abs() + 1e-5 || (!a.is_finite() && !b.is_finite()))
}

/// Kernels that no case runs: must be none.
pub fn untested(cases: &[Case]) -> Vec<&'static str> {
    ALL.iter()
        .filter(|k| !cases.iter().any(|c| c.tile.kernels().any(|used| used == **k)))
        .map(|k| k.name)
        .collect()
}

const _: () = assert!(CHUNK == 1024 && SIGN == 1 << 31, "SHAPES has rows on both sides of CHUNK");
