//! GB/s of input weights, beside yardsticks taken in the same run: memcpy, reading from page cache, `cp`.
//!
//! `cargo bench --bench throughput [-- --gib 1 --device gpu]`. Every figure is the median of five runs, in turn, so that
//! a machine whose speed drifts treats all alike; `x cp` is the ratio to copying the input file. One JSON line closes.

use monoquant::{
    backend::{Backend, Pass, Tile},
    device,
    gpu::GpuOptions,
    kernels::{ALL, TileParams, cases::data},
    plan::{OnMismatch, Request},
    quantize::{OnNonFinite, Settings, execute, prepare},
    recipe::Recipe,
    scheme::{Method, preset},
    tensor::Float,
};
use std::{
    cell::RefCell,
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    rc::Rc,
    time::Instant,
};

const RUNS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let option =
        |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1)).cloned();
    let gib: f64 = option("--gib").and_then(|g| g.parse().ok()).unwrap_or(1.0);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = folder.path().join("weights.safetensors");
    let bytes = make(&input, (gib * f64::from(1 << 30)) as usize);
    let copied = folder.path().join("copy");
    let block = vec![1u8; 256 << 20];
    let mut target = vec![0u8; block.len()];

    type Measure<'a> = Box<dyn FnMut() -> (f64, f64) + 'a>;
    let mut measures: Vec<(String, Measure)> = vec![
        ("memcpy, one core".into(), Box::new(|| timed(block.len(), || target.copy_from_slice(&block)))),
        ("read from page cache".into(), Box::new(|| timed(bytes, || read(&input)))),
        (
            "cp".into(),
            Box::new(|| {
                timed(bytes, || {
                    std::fs::copy(&input, &copied).expect("cp");
                })
            }),
        ),
        (
            "cp, then fsync".into(),
            Box::new(|| {
                timed(bytes, || {
                    std::fs::copy(&input, &copied).expect("cp");
                    File::open(&copied).and_then(|f| f.sync_all()).expect("fsync");
                })
            }),
        ),
    ];
    let mut devices = vec![device::Choice::Cpu];
    match option("--device") {
        Some(name) => devices.push(name.parse().unwrap_or_default()),
        None => devices.push(device::Choice::Gpu),
    }
    for choice in devices {
        for name in ["w8a8", "w4a16"] {
            let settings = Settings {
                output: Some(folder.path().join("out.safetensors")),
                force: true,
                device: choice.clone(),
                ..Settings::default()
            };
            let Ok(mut device) = device::open(&settings.device, &settings.gpu) else {
                println!("no device for {choice:?}");
                continue;
            };
            let label = format!("{name} file to file, {}", device.backend.describe());
            let input = input.clone();
            let run = move || timed(bytes, || quantize(&input, name, &settings, &mut device));
            measures.push((label, Box::new(run)));
        }
    }

    let choice = option("--device").map_or(device::Choice::Gpu, |name| name.parse().unwrap_or_default());
    if let Ok(device) = device::open(&choice, &GpuOptions::default()) {
        let device = Rc::new(RefCell::new(device));
        for kernels in [
            &["minmax"][..],
            &["minmax", "qparams"],
            &["quantize_pack"],
            &["error"],
            &["minmax", "qparams", "quantize_pack", "error"],
        ] {
            let label =
                format!("from memory: {}, {}", kernels.join(" + "), device.borrow().backend.describe());
            let device = device.clone();
            measures.push((label, Box::new(move || steps(device.borrow_mut().backend.as_mut(), kernels))));
        }
    }

    let mut results: Vec<Vec<f64>> = vec![Vec::new(); measures.len()];
    for _ in 0..RUNS {
        for ((_, measure), result) in measures.iter_mut().zip(&mut results) {
            let (bytes, seconds) = measure();
            result.push(bytes / seconds / 1e9);
        }
    }
    let median = |list: &mut Vec<f64>| {
        list.sort_by(f64::total_cmp);
        list[list.len() / 2]
    };
    let medians: Vec<f64> = results.iter_mut().map(median).collect();
    let cp = medians[2];
    println!(
        "{:>8}  {:>6}  {:>13}  of {:.2} GB of bf16 weights",
        "GB/s",
        "x cp",
        "min to max",
        bytes as f64 / 1e9
    );
    let mut line = serde_json::Map::new();
    for (((label, _), result), rate) in measures.iter().zip(&results).zip(&medians) {
        println!("{rate:>8.2}  {:>6.2}  {:>6.2} {:>6.2}  {label}", rate / cp, result[0], result[RUNS - 1]);
        line.insert(label.clone(), (rate * 1000.0).round().into());
    }
    println!("{}", serde_json::json!({"version": env!("CARGO_PKG_VERSION"), "bytes": bytes, "MB/s": line}));
}

fn timed(bytes: usize, work: impl FnOnce()) -> (f64, f64) {
    let start = Instant::now();
    work();
    (bytes as f64, start.elapsed().as_secs_f64())
}

/// Some kernels over tiles that are already in memory: what a device's own part costs.
fn steps(backend: &mut dyn Backend, names: &[&str]) -> (f64, f64) {
    const TILES: usize = 16;
    let elements = backend.tile_bytes() / 2;
    let params =
        TileParams { input_dtype: 2, scale_dtype: 2, row_len: 4096, channel_len: 4096, ..Default::default() }
            .with_groups(elements as u32, 128)
            .with_grid(4, true, true);
    let kernels = ALL.into_iter().filter(|k| names.contains(&k.name)).collect();
    let tile = Tile::one(0, 2 * elements, Pass { params, kernels, preload: vec![], wants: &[] });
    let weights = data("gaussian", elements, Float::BF16, 1);
    timed(TILES * weights.len(), || {
        for _ in 0..TILES {
            if backend.in_flight() == backend.depth() {
                backend.collect(&mut |_, _| Ok(())).expect("a tile");
            }
            let mut fill = |bytes: &mut [u8]| {
                bytes.copy_from_slice(&weights);
                Ok(())
            };
            backend.submit(tile.clone(), &mut fill).expect("a tile");
        }
        while backend.collect(&mut |_, _| Ok(())).expect("a tile") {}
    })
}

fn read(path: &Path) {
    let mut file = File::open(path).expect("the input");
    let mut buffer = vec![0; 4 << 20];
    while file.read(&mut buffer).expect("the input") > 0 {}
}

fn quantize(input: &Path, name: &str, settings: &Settings, device: &mut device::Device) {
    let preset = preset(name).expect("a preset");
    assert!(matches!(preset.method, Method::Quantize(_)));
    let request = Request {
        recipe: Recipe::new(preset),
        formats: vec![monoquant::formats::ALL[0]],
        symmetry_stated: false,
        on_mismatch: OnMismatch::Refuse,
        saturate: false,
        max_shard_size: None,
    };
    let prepared = prepare(input, &request, OnNonFinite::Refuse, settings).expect("a plan");
    execute(&prepared, device, settings, &false.into(), &|_| {}).expect("a run");
}

/// A checkpoint of bf16 matrices of 4096 columns; returns the bytes of its weights.
fn make(path: &PathBuf, bytes: usize) -> usize {
    const ROW: usize = 4096 * 2;
    let layer = (64 << 20).min(bytes / ROW * ROW);
    let layers = bytes / layer;
    let mut header = serde_json::Map::new();
    for i in 0..layers {
        let entry = serde_json::json!({"dtype": "BF16", "shape": [layer / ROW, 4096], "data_offsets": [i * layer, (i + 1) * layer]});
        header.insert(format!("model.layers.{i:04}.mlp.up_proj.weight"), entry);
    }
    let header = serde_json::to_vec(&header).expect("a header");
    let block = data("gaussian", layer / 2, Float::BF16, 1);
    let mut file = File::create(path).expect("the input");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("the input");
    file.write_all(&header).expect("the input");
    for _ in 0..layers {
        file.write_all(&block).expect("the input");
    }
    layers * layer
}
