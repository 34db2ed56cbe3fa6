//! Kernels of the CPU on weights in memory.

use crate::{
    sequences::{self, QUANTIZE},
    table::{Row, Sample, timed},
    yardsticks::{MEMCPY, TORCH_INT4, TORCH_INT8},
};
use monoquant::{
    backend::{Backend, CpuBackend, Tile},
    kernels::TileBuffers,
    observer::Observer,
};

/// Bytes of weights that kernels go through: more than a cache holds.
const BYTES: usize = 128 << 20;

pub fn rows<'a>() -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for (name, preset, observer) in QUANTIZE {
        // a search takes a hundred times as long
        let (bytes, target) =
            if observer == Observer::MinMax { (BYTES, Some(0.5)) } else { (BYTES / 8, None) };
        let measure = one_core(move |weights| sequences::quantize(preset, observer, weights), bytes);
        rows.push(Row::new(format!("{name} in memory, one core"), measure).rate_of(MEMCPY, target));
    }
    let measure = one_core(sequences::dequantize, BYTES);
    rows.push(
        Row::new("dequantize int4 in memory, one core (GB/s of bf16 made)", measure).rate_of(MEMCPY, None),
    );
    for (name, preset, torch) in [("w8a8", "w8a8", TORCH_INT8), ("w4a16", "w4a16", TORCH_INT4)] {
        let measure = all_cores(preset);
        rows.push(Row::new(format!("{name} minmax in memory, all cores"), measure).rate_of(torch, None));
    }
    rows
}

/// A tile after another, each with weights of its own in memory, through one set of buffers, as a worker thread has it.
fn one_core(tile: impl Fn(usize) -> Tile, bytes: usize) -> impl FnMut() -> Sample {
    let weights = CpuBackend::new().tile_bytes() / 2;
    let tile = tile(weights);
    let mut state: Option<(Vec<Vec<u32>>, TileBuffers)> = None;
    move || {
        let (inputs, buffers) = state.get_or_insert_with(|| {
            let input = sequences::input(&tile, 1);
            let mut buffers = TileBuffers { input: input.clone(), ..Default::default() };
            buffers.resize(&tile.lengths());
            (vec![input; bytes / weights / 2], buffers)
        });
        timed(inputs.len() * weights * 2, || {
            inputs.iter_mut().for_each(|input| sequences::run(&tile, input, buffers));
        })
    }
}

/// The backend itself; a tile is filled from memory where the engine reads it from a file.
fn all_cores(preset: &'static str) -> impl FnMut() -> Sample {
    let mut state = None;
    move || {
        let (backend, tile, weights) = state.get_or_insert_with(|| {
            let backend = CpuBackend::new();
            let tile = sequences::quantize(preset, Observer::MinMax, backend.tile_bytes() / 2);
            let input: Vec<u8> = bytemuck::cast_slice(&sequences::input(&tile, 1)).to_vec();
            let weights = input.repeat(BYTES / input.len());
            (backend, tile, weights)
        });
        timed(weights.len(), || through(backend, tile, weights))
    }
}

/// Runs weights through a backend, a tile's worth at a time.
fn through(backend: &mut dyn Backend, tile: &Tile, weights: &[u8]) {
    for part in weights.chunks_exact(tile.input_bytes) {
        if backend.in_flight() == backend.depth() {
            backend.collect(&mut |_, _| Ok(())).expect("a tile");
        }
        let mut fill = |bytes: &mut [u8]| {
            bytes.copy_from_slice(part);
            Ok(())
        };
        backend.submit(tile.clone(), &mut fill).expect("a tile");
    }
    while backend.collect(&mut |_, _| Ok(())).expect("a tile") {}
}
