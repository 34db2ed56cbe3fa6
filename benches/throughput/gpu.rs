//! A GPU's own part: kernels on what is in its memory, beside a kernel that only copies; the ring of buffers.

use crate::{
    cpu::through,
    resident::resident,
    sequences,
    table::{Row, timed},
};
use monoquant::{
    backend::{Backend, Pass, Tile},
    device::Choice,
    gpu::{self, Adapter, GpuBackend, GpuOptions},
    kernels::{Binding, Kernel, TileParams},
    observer::Observer,
};
use std::rc::Rc;

pub const COPYING: &str = "a kernel that copies all words, GPU";
pub const RING: &str = "ring alone: upload, a kernel that reads all, w4a16's bytes back, GPU";

/// Reads all input, a vector a thread, and writes as much.
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
        vec![(Binding::Input, words), (Binding::Output, words)]
    },
};

/// Reads all input, and writes one word for `group_len` that it reads.
static FOLD: Kernel = Kernel {
    name: "fold_words",
    wgsl: "
@compute @workgroup_size(WORKGROUP)
fn fold_words(@builtin(workgroup_id) w: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) l: u32) {
  let i = flat_index(w, n, l);
  if (i >= params.groups) { return; }
  var folded = vec4<u32>(0u);
  let end = min((i + 1u) * params.group_len, params.elements / 8u);
  for (var k = i * params.group_len; k < end; k += 1u) { folded ^= input[k]; }
  output[i] = folded.x ^ folded.y ^ folded.z ^ folded.w;
}
",
    cpu: |_, _| {},
    threads: |params| params.groups,
    team: false,
    touches: |params| vec![(Binding::Input, params.elements as usize / 2), (Binding::Output, params.groups as usize)],
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
pub fn rows<'a>(choice: &Choice) -> Option<(String, Vec<Row<'a>>)> {
    let Some(adapter) = adapter(choice) else {
        println!("no GPU is measured: there is no adapter of that name, not even a software one");
        return None;
    };
    if let Some(lack) = gpu::lacks(&adapter) {
        println!("no GPU is measured: {}: {lack}", adapter.facts.name);
        return None;
    }
    let mut backend = match GpuBackend::open(&adapter, GpuOptions::default()) {
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
    let result = sequences::quantize("w4a16", Observer::MinMax, weights);
    let words: usize = result.passes[0].wants.iter().map(|&b| result.lengths().of(b)).sum();
    let fold = TileParams {
        group_len: (weights / 8).div_ceil(words) as u32, // vectors of four words
        groups: words as u32,
        ..copy
    };
    let fold = one(&FOLD, fold);
    let mut input = None;
    let ring = move || {
        let bytes: &mut Vec<u8> = input.get_or_insert_with(|| {
            let bytes: Vec<u8> = bytemuck::cast_slice(&sequences::input(&result, 1)).to_vec();
            let bytes = bytes.repeat((64 << 20) / bytes.len());
            through(&mut backend, &fold, &bytes); // compiles, and makes the buffers
            bytes
        });
        timed(bytes.len(), || through(&mut backend, &fold, bytes))
    };
    rows.push(Row::new(RING, ring));
    Some((name, rows))
}

/// A tile that one kernel runs over.
fn one(kernel: &'static Kernel, params: TileParams) -> Tile {
    let pass = Pass { params, kernels: vec![kernel], preload: vec![], wants: &[Binding::Output] };
    Tile::one(0, 2 * params.elements as usize, pass)
}
