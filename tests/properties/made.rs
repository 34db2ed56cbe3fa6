//! Tiles that proptest makes up, and what the properties read from them.

use monoquant::{
    backend::{Pass, run_on_cpu},
    kernels::{Kernel, TileBuffers, TileParams},
    tensor::Float,
};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, FileFailurePersistence},
};

/// Cases of every property, or more by PROPTEST_CASES. Those that failed are kept beside the others, and tried first.
pub fn config() -> Config {
    let kept = FileFailurePersistence::Direct("proptest-regressions/properties.txt");
    let usual = Config::default();
    Config { cases: usual.cases.max(400), failure_persistence: Some(Box::new(kept)), ..usual }
}

/// Weights in groups, and how they are to be quantized.
#[derive(Debug, Clone)]
pub struct Tile {
    pub params: TileParams,
    /// As they are stored, in the tile's dtype.
    pub bytes: Vec<u8>,
}

impl Tile {
    pub fn float(&self) -> Float {
        self.params.input_float()
    }

    /// The weights as kernels see them: what lies below the normals of f32 is zero.
    pub fn weights(&self) -> Vec<f64> {
        let flushed = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0.0 } else { f64::from(x) };
        self.bytes.chunks(self.float().size()).map(|bytes| flushed(self.float().decode(bytes))).collect()
    }

    /// Runs kernels over it, on buffers that `prepare` has filled.
    pub fn run_on(&self, kernels: &[&'static Kernel], prepare: impl FnOnce(&mut TileBuffers)) -> TileBuffers {
        run(self.params, kernels, &self.bytes, prepare)
    }

    pub fn run(&self, kernels: &[&'static Kernel]) -> TileBuffers {
        self.run_on(kernels, |_| {})
    }
}

/// Runs kernels over an input.
pub fn run(
    params: TileParams,
    kernels: &[&'static Kernel],
    input: &[u8],
    prepare: impl FnOnce(&mut TileBuffers),
) -> TileBuffers {
    let pass = Pass { params, kernels: kernels.to_vec(), preload: vec![], wants: &[] };
    let mut buffers = TileBuffers::default();
    buffers.resize(&pass.lengths());
    // some kernels read no weights
    let room = bytemuck::cast_slice_mut(&mut buffers.input);
    let count = input.len().min(room.len());
    room[..count].copy_from_slice(&input[..count]);
    prepare(&mut buffers);
    run_on_cpu(&pass, &mut buffers);
    buffers
}

pub fn float() -> impl Strategy<Value = Float> {
    prop::sample::select(Float::ALL.to_vec())
}

/// Weights of a kind: spread out, of any size, equal or on a grid, few and large among many small ones.
pub fn values(count: usize) -> impl Strategy<Value = Vec<f32>> {
    let scaled = (vec(-1.0f32..1.0, count), -20i32..12)
        .prop_map(|(values, e)| values.into_iter().map(|x| x * 2f32.powi(e)).collect());
    let sizes = vec((-1.0f32..1.0, -30i32..10).prop_map(|(x, e)| x * 2f32.powi(e)), count);
    let grid = (vec(-16i32..=16, count), 0i32..8)
        .prop_map(|(values, e)| values.into_iter().map(|n| n as f32 * 0.5f32.powi(e)).collect());
    let positive = vec(3.0f32..4.0, count);
    let peaks = vec(prop_oneof![9 => -0.02f32..0.02, 1 => -4.0f32..4.0], count);
    prop_oneof![4 => scaled, 2 => sizes, 1 => grid, 1 => positive, 2 => peaks, 1 => Just(vec![0.0; count])]
}

/// Values as a dtype stores them.
pub fn encoded(float: Float, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    values.iter().for_each(|&x| float.encode(x, &mut bytes));
    bytes
}

/// A tile of some rows of some groups. Rows of `multiple` weights and more, which need not be whole words of codes.
pub fn tiles(multiple: u32) -> impl Strategy<Value = Tile> {
    tiles_of(multiple, &Float::ALL)
}

/// The same with weights and scales in some dtypes only.
pub fn tiles_of(multiple: u32, floats: &[Float]) -> impl Strategy<Value = Tile> {
    let shape = (1u32..6, 1u32..4, prop_oneof![1u32..20, 30u32..70, 300u32..400]);
    let float = prop::sample::select(floats.to_vec());
    let scheme = (prop::sample::select(vec![4u32, 8]), any::<bool>(), float.clone(), float);
    (shape, scheme).prop_flat_map(move |((rows, groups, length), (bits, symmetric, input, scale))| {
        let group_len = length.div_ceil(multiple) * multiple;
        let row_len = groups * group_len;
        let params = TileParams {
            input_dtype: input as u32,
            scale_dtype: scale as u32,
            row_len,
            channel_len: row_len,
            ..Default::default()
        };
        let params = params.with_groups(rows * row_len, group_len).with_grid(bits, symmetric, true);
        values((rows * row_len) as usize)
            .prop_map(move |values| Tile { params, bytes: encoded(input, &values) })
    })
}

/// Scale and zero point of every group, in f64.
pub fn qparams(buffers: &TileBuffers) -> Vec<(f64, f64)> {
    let pairs = buffers.scales.iter().zip(&buffers.zero_points);
    pairs.map(|(&scale, &zero_point)| (f64::from(f32::from_bits(scale)), f64::from(zero_point))).collect()
}

/// The codes of a tile, out of their words.
pub fn codes(params: &TileParams, words: &[u32]) -> Vec<i32> {
    let (bits, per_word) = (params.bits, 32 / params.bits);
    let code = |i: u32| {
        let (row, col) = (i / params.row_len, i % params.row_len);
        let word = words[(row * params.row_len.div_ceil(per_word) + col / per_word) as usize];
        (word >> (col % per_word * bits) & ((1 << bits) - 1)) as i32 - params.code_offset
    };
    (0..params.elements).map(code).collect()
}

/// Half a unit in the last place of a dtype, relative.
pub fn rounding(float: Float) -> f64 {
    match float {
        Float::F32 => 2f64.powi(-24),
        Float::F16 => 2f64.powi(-11),
        Float::BF16 => 2f64.powi(-8 - 1),
    }
}
