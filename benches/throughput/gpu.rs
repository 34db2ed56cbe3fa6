//! A GPU's own part: kernels on what is in its memory, beside a kernel that only copies; the ring of buffers.

use crate::{
    files::Files,
    resident::resident,
    sequences,
    table::{Row, Sample, timed},
    yardsticks::result_bytes,
};
use monoquant::{
    backend::{Backend, Pass, Results, Tile},
    device::Choice,
    gpu::{self, Adapter, GpuBackend, GpuOptions},
    kernels::{Binding, Kernel, TileParams},
    observer::Observer,
};
use std::{
    cell::RefCell,
    fs::File,
    io::{Read, Write},
    rc::Rc,
};

pub const COPYING: &str = "a kernel that copies all words, GPU";
/// What runs on files are held against, by preset.
pub const RINGS: [(&str, &str); 2] = [
    ("w8a8", "ring alone: files, a kernel that copies, w8a8's bytes back, GPU"),
    ("w4a16", "ring alone: files, a kernel that copies, w4a16's bytes back, GPU"),
];

/// Reads all input, a vector a thread, and writes as much. A ring brings `groups` words back.
static COPY: Kernel = Kernel {
    name: "copy_words",
    wgsl: "
@compute @workgroup_size(WORKGROUP)
fn copy_words(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = flat_index(w, n, l);
  if (i >= params.elements / 8u) { return; }
  let words = input[i];
  output[4u * i] = words.x;
  output[4u * i + 1u] = words.y;
  output[4u * i + 2u] = words.z;
  output[4u * i + 3u] = words.w;
}
",
    cpu: |_, buffers| buffers.output.copy_from_slice(&buffers.input),
    threads: |params| params.elements.div_ceil(8),
    team: false,
    touches: |params| {
        let words = params.elements as usize / 2;
        vec![(Binding::Input, words), (Binding::Output, words), (Binding::Scales, params.groups as usize)]
    },
};

/// The adapter that `--device` means.
fn adapter(choice: &Choice) -> Option<Adapter> {
    let mut adapters = gpu::adapters();
    let at = match choice {
        Choice::Named(name) => adapters.iter().position(|a| {
            format!("{} {}", a.facts.name, a.facts.driver).to_lowercase().contains(&name.to_lowercase())
        }),
        _ => (!adapters.is_empty()).then_some(0),
    };
    at.map(|at| adapters.swap_remove(at))
}

/// Rows of a GPU, and what it is; or a line that says why there are none.
pub fn rows<'a>(choice: &Choice, files: &Rc<Files>) -> Option<(String, Vec<Row<'a>>)> {
    let Some(adapter) = adapter(choice) else {
        println!("no GPU is measured: there is no adapter of that name, not even a software one");
        return None;
    };
    if let Some(lack) = gpu::lacks(&adapter) {
        println!("no GPU is measured: {}: {lack}", adapter.facts.name);
        return None;
    }
    let backend = match GpuBackend::open(&adapter, GpuOptions::default()) {
        Ok(backend) => backend,
        Err(e) => {
            println!("no GPU is measured: {e}");
            return None;
        }
    };
    let name = backend.describe();
    let weights = backend.tile_bytes() / 2;
    let copy = TileParams::default().with_groups(weights as u32, weights as u32);
    let adapter = Rc::new(adapter);
    let kernels = |tile: Tile| {
        let adapter = adapter.clone();
        let mut measure = None;
        move || measure.get_or_insert_with(|| resident(&adapter, tile.clone()))()
    };
    let mut rows = vec![Row::new(COPYING, kernels(one(&COPY, copy)))];
    for preset in ["w8a8", "w4a16"] {
        let tile = sequences::quantize(preset, Observer::MinMax, weights);
        rows.push(
            Row::new(format!("{preset} minmax, kernels alone, GPU"), kernels(tile)).rate_of(COPYING, None),
        );
    }
    let backend = Rc::new(RefCell::new(backend));
    for (preset, name) in RINGS {
        let result = sequences::quantize(preset, Observer::MinMax, weights);
        let words: usize = result.passes[0].wants.iter().map(|&b| result.lengths().of(b)).sum();
        let mut tile = one(&COPY, TileParams { groups: words as u32, ..copy });
        tile.passes[0].wants = &[Binding::Scales];
        let (files, backend) = (files.clone(), backend.clone());
        let mut warm = false;
        rows.push(Row::new(name, move || {
            let mut backend = backend.borrow_mut();
            if !std::mem::replace(&mut warm, true) {
                ring(&mut *backend, &tile, &files, preset); // compiles, and makes the buffers
            }
            ring(&mut *backend, &tile, &files, preset)
        }));
    }
    Some((name, rows))
}

/// All that a run on files does, but for quantizing: the same bytes read, brought back and written.
fn ring(backend: &mut dyn Backend, tile: &Tile, files: &Files, preset: &str) -> Sample {
    let (input, bytes) = files.gpu_input();
    let output = files.fresh("ring");
    let tiles = bytes / tile.input_bytes;
    let written = tile.input_bytes / 1024 * result_bytes(preset);
    timed(tiles * tile.input_bytes, || {
        let mut input = File::open(input).expect("the input");
        let mut output = File::create(output).expect("a file");
        output.set_len((tiles * written) as u64).expect("a length, as the engine's files have");
        let mut take = |_, results: &[Results]| {
            let words = results[0].get(Binding::Scales);
            output.write_all(&bytemuck::cast_slice(words)[..written]).expect("a write");
            Ok(())
        };
        let mut fill = |bytes: &mut [u8]| {
            input.read_exact(bytes).expect("the input");
            Ok(())
        };
        for _ in 0..tiles {
            if !backend.has_room() {
                backend.collect(&mut take).expect("a tile");
            }
            backend.submit(tile.clone(), &mut fill).expect("a tile");
        }
        while backend.collect(&mut take).expect("a tile") {}
        output.sync_all().expect("fsync");
    })
}

/// A tile that one kernel runs over.
fn one(kernel: &'static Kernel, params: TileParams) -> Tile {
    let pass = Pass { params, kernels: vec![kernel], preload: vec![], wants: &[Binding::Output] };
    Tile::one(0, 2 * params.elements as usize, pass)
}
