//! The kernel sequences that count, as the engine runs them: the first tile of a matrix of 4096 columns, its passes
//! made by the engine's own code, its buffers of the engine's lengths.

use monoquant::{
    backend::{Pass, Tile, run_on_cpu},
    kernels::{Binding, TileBuffers, cases::data},
    observer::Observer,
    plan::{Coded, Layout},
    scheme::{Grid, Method, Scheme, preset},
    sweeps::{Active, Kind},
    tensor::Float,
    tiles::{Band, Sweep, bands},
};

/// Weights a row.
pub const COLS: usize = 4096;

/// Every sequence by name: preset and observer.
pub const QUANTIZE: [(&str, &str, Observer); 4] = [
    ("w8a8 minmax", "w8a8", Observer::MinMax),
    ("w4a16 minmax", "w4a16", Observer::MinMax),
    ("w8a8 mse", "w8a8", Observer::Mse { both_signs: true }),
    ("w4a16 mse", "w4a16", Observer::Mse { both_signs: true }),
];

/// The scheme of a preset with another observer.
pub fn scheme(name: &str, observer: Observer) -> Scheme {
    match preset(name).map(|preset| preset.method) {
        Some(Method::Quantize(scheme)) => Scheme { observer, ..scheme },
        _ => panic!("{name} is no preset for layers"),
    }
}

/// A tile of `weights` bf16 weights (whole rows) that is quantized.
pub fn quantize(name: &str, observer: Observer, weights: usize) -> Tile {
    let (scheme, rows) = (scheme(name, observer), weights / COLS);
    let grids = vec![Grid { scheme, scale: Float::BF16 }];
    let kind = Kind::Quantize { grids, input: Float::BF16, rows, cols: COLS };
    let band = bands(scheme, rows, COLS, weights).next().expect("a band");
    Active::new(kind, 0, band).tile(0, 0)
}

/// A tile of `weights` weights in int4 groups of 128 that becomes bf16.
pub fn dequantize(weights: usize) -> Tile {
    let coded = Coded {
        bits: 4,
        layout: Layout::Packed,
        rows: weights / COLS,
        cols: COLS,
        group_len: 128,
        scales: (0, Float::BF16),
        zero_points: None,
        output: Float::BF16,
    };
    let pieces =
        bands(scheme("w4a16", Observer::MinMax), coded.rows, COLS, weights).next().expect("a band").pieces;
    let band = Band { pieces, spans: false, sweeps: &[Sweep::Quantize] };
    let mut tile = Active::new(Kind::Dequantize { coded, saturate: false }, 0, band).tile(0, 0);
    let pass: &mut Pass = &mut tile.passes[0];
    let groups = pass.params.groups as usize;
    pass.preload.push((Binding::Scales, vec![0.01f32.to_bits(); groups]));
    pass.preload.push((Binding::ZeroPoints, vec![0; groups]));
    tile
}

/// Input for a tile: Gaussian weights, whose bits also serve as codes.
pub fn input(tile: &Tile, seed: u64) -> Vec<u32> {
    let bytes = data("gaussian", tile.input_bytes.div_ceil(2), Float::BF16, seed);
    let mut words = vec![0; tile.lengths().of(Binding::Input)];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(&bytes);
    words
}

/// Runs a tile on the calling thread, as a worker of the CPU backend does: buffers are used again, `input` lies in
/// memory and is handed back.
pub fn run(tile: &Tile, input: &mut Vec<u32>, buffers: &mut TileBuffers) {
    std::mem::swap(&mut buffers.input, input);
    buffers.resize(&tile.lengths());
    run_on_cpu(&tile.passes[0], buffers);
    std::mem::swap(&mut buffers.input, input);
}
