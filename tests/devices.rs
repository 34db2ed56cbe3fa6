//! Devices: several as one, what is compiled and compared before a job, and what is kept of it.

mod common;

use common::*;
use monoquant::{
    backend::{Backend, CpuBackend, Dispatches, Fill, Results, Steps, Take, Tile},
    device,
    error::Result,
    gpu::{self, GpuBackend, GpuOptions},
    kernels::{Lengths, cases},
    plan::{OnMismatch, Request},
    quantize::{OnNonFinite, Prepared, Settings, prepare, steps},
    recipe::Recipe,
    scheme::preset,
    several::Several,
    tensor::Float,
};
use std::{cell::Cell, path::Path, rc::Rc, time::Instant};

const BF16: u32 = Float::BF16 as u32;

fn on_gpu(adapter: &gpu::Adapter, options: GpuOptions) -> GpuBackend {
    GpuBackend::open(adapter, options).unwrap()
}

/// The first adapter and the CPU, the first adapter twice, and all adapters of this machine.
fn groups() -> Vec<Vec<Box<dyn Backend>>> {
    let adapters = gpu::adapters();
    let gpu = |i: usize| Box::new(on_gpu(&adapters[i], GpuOptions::default())) as Box<dyn Backend>;
    let mut groups = vec![vec![gpu(0), Box::new(CpuBackend::new())], vec![gpu(0), gpu(0)]];
    if adapters.len() > 1 {
        groups.push((0..adapters.len()).map(gpu).collect());
    }
    groups
}

#[test]
fn several_devices_share_the_tiles_and_make_the_same_bytes() {
    for backends in groups() {
        let depth: usize = backends.iter().map(|b| b.depth()).sum();
        let least = backends.iter().map(|b| b.tile_bytes()).min().unwrap();
        let mut several = Several::new(backends);
        assert!(several.depth() >= depth && several.tile_bytes() == least);
        let outcome = cases::compare(&mut several, &cases::cases(true)).unwrap();
        assert!(outcome.differences.is_empty(), "{}: {:?}", several.describe(), outcome.differences[0]);
        let shares = several.shares();
        assert!(shares.iter().all(|share| share.values().sum::<u64>() > 10), "{shares:?}");
        let sum = |d: &Dispatches| d.values().sum::<u64>();
        assert_eq!(sum(&several.dispatches()), shares.iter().map(sum).sum::<u64>());
    }
}

#[test]
fn several_devices_write_the_same_files_as_one() {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::BF16), &llama_config());
    let several = if gpu::adapters().len() > 1 { "gpu:0,gpu:1" } else { "gpu:0,cpu" };
    for recipe in [
        &["--bits", "4", "--group-size", "32", "--scheme", "asymmetric"][..],
        &["--bits", "8", "--strategy", "tensor", "--observer", "histogram"],
        &["--bits", "8", "--observer", "mse"],
        &["--preset", "fp16"],
    ] {
        let write = |name: &str, device: &str| {
            let (model, out) = (folder.text("model"), folder.text(name));
            let tile = ["--device", device, "--tile-bytes", "1000B", "--max-memory", "64MiB"];
            let report = ok(&[&["quantize", "-m", &model, "-o", &out, "--force"], recipe, &tile].concat());
            (std::fs::read(folder.path(name).join("model.safetensors")).unwrap(), report)
        };
        let ((one, _), (two, report)) = (write("one", "cpu"), write("two", several));
        assert!(one == two, "{recipe:?}");
        assert!(report["device"].as_str().unwrap().contains(" + "), "{}", report["device"]);
    }
}

/// A device whose oldest tile is not finished until the test says so.
struct Stuck(CpuBackend, Rc<Cell<bool>>);

impl Backend for Stuck {
    fn set_profile(&mut self, _: Option<monoquant::profile::Profile>) {}
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn tile_bytes(&self) -> usize {
        self.0.tile_bytes()
    }
    fn depth(&self) -> usize {
        3
    }
    fn bytes_per_tile(&self, lengths: &Lengths, passes: usize) -> u64 {
        self.0.bytes_per_tile(lengths, passes)
    }
    fn max_buffer_bytes(&self) -> u64 {
        self.0.max_buffer_bytes()
    }
    fn verify(&mut self, steps: &Steps) -> Result<()> {
        self.0.verify(steps)
    }
    fn submit(&mut self, tile: Tile, fill: Fill) -> Result<()> {
        self.0.submit(tile, fill)
    }
    fn collect(&mut self, take: Take) -> Result<bool> {
        assert!(self.1.get(), "waited for a device that is at work");
        self.0.collect(take)
    }
    fn finished(&mut self) -> Option<Instant> {
        if self.1.get() { self.0.finished() } else { None }
    }
    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }
    fn dispatches(&self) -> Dispatches {
        self.0.dispatches()
    }
}

/// While one device computes the oldest tile, the other goes on until the window is full; nothing changes the order.
#[test]
fn a_slow_device_does_not_hold_up_another_and_tiles_stay_in_order() {
    let case = &cases::cases(true)[0];
    let released = Rc::new(Cell::new(false));
    let quick = CpuBackend::new();
    let own = quick.depth();
    let mut several =
        Several::new(vec![Box::new(Stuck(CpuBackend::new(), released.clone())), Box::new(quick)]);
    let mut submitted = 0;
    while several.has_room() {
        let tile = Tile { tag: submitted, ..case.tile.clone() };
        let fill = &mut |bytes: &mut [u8]| {
            bytes.copy_from_slice(&case.input);
            Ok(())
        };
        several.submit(tile, fill).unwrap();
        submitted += 1;
    }
    assert_eq!((several.in_flight(), submitted as usize), (several.depth(), several.depth()));
    assert!(several.finished().is_none());
    let shares: Vec<u64> = several.shares().iter().map(|share| share["minmax"]).collect();
    assert!(shares[0] == 3 && shares[1] as usize > own, "{shares:?}");
    assert!(several.submit(case.tile.clone(), &mut |_| Ok(())).is_err());

    released.set(true);
    let mut expected: Option<Vec<Vec<u32>>> = None;
    for tag in 0..submitted {
        let take = &mut |tile: Tile, results: &[Results]| {
            assert_eq!(tile.tag, tag);
            let words: Vec<_> =
                tile.passes[0].wants.iter().map(|&binding| results[0].get(binding).to_vec()).collect();
            assert!(words.iter().any(|w| !w.is_empty()));
            // held or handed over in place: the same
            assert!(expected.get_or_insert(words.clone()) == &words);
            Ok(())
        };
        assert!(several.collect(take).unwrap());
    }
    assert!(!several.collect(&mut |_, _| Ok(())).unwrap() && several.in_flight() == 0);
}

#[test]
fn devices_have_numbers_and_wrong_ones_are_refused_with_those() {
    let adapters = gpu::adapters();
    assert!(adapters.iter().enumerate().all(|(i, a)| a.facts.number == i));
    let listed = String::from_utf8(run(&["devices"]).stdout).unwrap();
    for adapter in &adapters {
        let row =
            listed.lines().find(|line| line.contains(&format!("gpu:{}", adapter.facts.number))).unwrap();
        assert!(row.contains(&adapter.facts.name), "{listed}");
    }
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::BF16), &llama_config());
    for device in ["gpu:99", "gpu:0,gpu:99", "gpu:0,gpu:0"] {
        let (model, out) = (folder.text("model"), folder.text("out"));
        let text = refused(&["quantize", "-m", &model, "-o", &out, "-b", "8", "--device", device]);
        assert!(text.contains(device) && text.contains(&adapters[0].facts.name), "{text}");
    }
    assert_eq!(names(folder.root()), ["model"]);
}

fn prepared(folder: &Path, preset_name: &str) -> (Prepared, Settings) {
    let request = Request {
        recipe: Recipe::new(preset(preset_name).unwrap()),
        formats: vec![monoquant::formats::ALL[0]],
        symmetry_stated: false,
        on_mismatch: OnMismatch::Channel,
        saturate: false,
        max_shard_size: None,
    };
    let settings = Settings { output: Some(folder.join("out")), ..Settings::default() };
    (prepare(&folder.join("model"), &request, OnNonFinite::Refuse, &settings).unwrap(), settings)
}

#[test]
fn only_what_a_job_uses_is_compiled_and_compared() {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::BF16), &llama_config());
    let adapters = gpu::adapters();
    for (name, kernels) in [("w8a8", &["quantize"][..]), ("fp16", &["convert"])] {
        let (prepared, settings) = prepared(folder.root(), name);
        let mut backend = on_gpu(&adapters[0], GpuOptions::default());
        assert_eq!(backend.compiled().len(), 0);
        let needed = steps(&prepared, &settings, &backend);
        assert_eq!(needed, kernels.iter().map(|kernel| (*kernel, BF16)).collect());
        backend.verify(&needed).unwrap();
        assert_eq!(backend.compiled(), needed);
        assert!(backend.dispatches().is_empty(), "a check does not count as work");
    }
}

#[test]
fn what_was_not_compared_is_not_computed() {
    let case = &cases::cases(true).into_iter().find(|c| c.tile.passes[0].params.input_dtype == BF16).unwrap();
    let submit = |backend: &mut GpuBackend| {
        backend.submit(case.tile.clone(), &mut |bytes| {
            bytes.copy_from_slice(&case.input);
            Ok(())
        })
    };
    let mut backend = on_gpu(&gpu::adapters()[0], GpuOptions::default());
    backend.verify(&[("minmax", BF16)].into()).unwrap();
    let error = submit(&mut backend).unwrap_err().to_string();
    assert!(error.contains("was not compared"), "{error}");
    // more steps add to those before; the same kernel for another dtype is another step
    let others: Vec<_> = case.tile.steps().filter(|(kernel, _)| *kernel != "minmax").collect();
    backend.verify(&others.iter().map(|(kernel, _)| (*kernel, Float::F32 as u32)).collect()).unwrap();
    assert!(submit(&mut backend).is_err());
    backend.verify(&others.into_iter().collect()).unwrap();
    submit(&mut backend).unwrap();
    assert!(backend.collect(&mut |_, _| Ok(())).unwrap());
}

/// Faults that the short harness finds are found by the part of it that a job runs, if its kernels have them.
#[test]
fn the_check_before_a_job_sees_a_wrong_driver() {
    let quantize = ["minmax", "qparams", "quantize_pack", "error"];
    let with = |more: &[&'static str]| [&quantize[..], more].concat();
    let q4_k = ["block_search", "block_scales", "block_pack", "block_error"].to_vec();
    let adapter = &gpu::adapters()[0];
    let [f32, f16, bf16] = [Float::F32 as u32, Float::F16 as u32, BF16];
    for (from, to, kernels, dtype) in [
        // codes of 16-bit weights are the same without this bit
        ("(quotient >> 1u) + (quotient & 1u)", "(quotient >> 1u)", with(&[]), f32),
        ("magnitude == middle && odd", "magnitude == middle", with(&[]), bf16),
        ("magnitude == middle && odd", "magnitude == middle", with(&["histogram", "clip_range"]), f16),
        ("atomicMax(&ranges[2u * group], best.x)", "atomicMax(&ranges[2u * group], best.y)", with(&[]), f32),
        ("12582912.0", "25165824.0", vec!["quantize"], bf16),
        ("12582912.0", "25165824.0", vec!["minmax", "histogram", "clip_range", "qparams", "quantize"], f16),
        ("magnitude == middle && odd", "magnitude == middle", vec!["quantize"], f32),
        ("0.015625", "0.0156251", vec!["minmax", "search", "refine", "qparams", "quantize"], bf16),
        (">> vec4<u32>(16u)", ">> vec4<u32>(15u)", with(&["search", "refine"]), f16),
        ("best.x);", "best.y);", vec!["quantize"], bf16),
        ("+ 0xfffu", "+ 0x1000u", vec!["convert"], f32),
        ("(x + 0x7fffu", "(x + 0x8000u", vec!["convert"], f32),
        ("(x + 0x7fffu", "(x + 0x8000u", vec!["convert"], f16),
        ("+ 0xfffu", "+ 0x1000u", vec!["dequantize"], f32),
        ("(x + 0x7fffu", "(x + 0x8000u", vec!["dequantize"], f32),
        ("<< ((i - start) * params.bits)", "<< ((i - start) * params.bits + 1u)", with(&[]), f16),
        ("(high << 4u)) - 32)", "(high << 4u)) - 31)", vec!["block_dequantize"], f32),
        ("h + u32(f16_to_f32(h) < x)", "h", q4_k.clone(), bf16),
        ("if (error < least) {", "if (error <= least) {", q4_k, f16),
    ] {
        let options = GpuOptions { corrupt: Some((from, to)), ..Default::default() };
        let steps = kernels.iter().map(|kernel| (*kernel, dtype)).collect();
        let error = on_gpu(adapter, options).verify(&steps).map_err(|e| e.to_string());
        assert!(error.as_ref().is_err_and(|e| e.contains("--device cpu")), "{from} for {dtype}: {error:?}");
        on_gpu(adapter, GpuOptions::default()).verify(&steps).unwrap();
    }
    // and one in a kernel that the job does not run is none of its business
    let options =
        GpuOptions { corrupt: Some(("(high << 4u)) - 32)", "(high << 4u)) - 31)")), ..Default::default() };
    on_gpu(adapter, options).verify(&quantize.map(|kernel| (kernel, bf16)).into()).unwrap();
    let unknown = on_gpu(adapter, GpuOptions::default()).verify(&[("no such kernel", bf16)].into());
    assert!(unknown.unwrap_err().to_string().contains("no case"));
}

/// A device that was opened without a check is checked before it computes.
#[test]
fn no_run_starts_unchecked() {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::BF16), &llama_config());
    let (prepared, settings) = prepared(folder.root(), "w8a8");
    let corrupt = Some(("12582912.0", "25165824.0"));
    let options = GpuOptions { corrupt, ..Default::default() };
    for choice in [device::Choice::Gpu, device::Choice::Named("gpu:0,cpu".into())] {
        let mut device = device::open(&choice, &options).unwrap();
        let run = monoquant::quantize::execute(&prepared, &mut device, &settings, &false.into(), &|_| {});
        assert!(run.unwrap_err().to_string().contains("quantize"));
        assert!(!folder.path("out").exists());
    }
}

#[test]
fn pipelines_are_kept_and_damaged_files_ignored() {
    let folder = Folder::new();
    let adapter = &gpu::adapters()[0];
    let options = GpuOptions { cache: Some(folder.path("cache")), ..Default::default() };
    let steps = [("minmax", BF16)].into();
    let verify = || on_gpu(adapter, options.clone()).verify(&steps).unwrap();
    verify();
    if !folder.path("cache").exists() {
        return; // not Vulkan
    }
    let files = names(&folder.path("cache"));
    assert!(files.len() == 1 && files[0].ends_with(env!("CARGO_PKG_VERSION")), "{files:?}");
    let path = folder.path("cache").join(&files[0]);
    let whole = std::fs::read(&path).unwrap();
    let sealed = |data: &[u8]| [data, &crc32fast::hash(data).to_le_bytes()].concat();
    assert!(whole == sealed(&whole[..whole.len() - 4]));
    // bytes 17 to 32 of wgpu's header say which adapter it was
    let mut foreign = whole[..whole.len() - 4].to_vec();
    foreign[20] ^= 1;
    for damaged in [&whole[1..], &[], b"data", &sealed(b"data"), &sealed(&[0; 8]), &sealed(&foreign)] {
        std::fs::write(&path, damaged).unwrap();
        verify();
    }
    // a new file in place of a damaged one
    std::fs::write(&path, b"data").unwrap();
    verify();
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    // none where there is nothing new, whatever the driver returns; and one again with another kernel
    let written = || std::fs::metadata(&path).unwrap().modified().unwrap();
    let before = written();
    verify();
    assert!(written() == before && std::fs::read(&path).unwrap() == whole);
    on_gpu(adapter, options.clone()).verify(&[("convert", BF16)].into()).unwrap();
    assert!(std::fs::read(&path).unwrap().len() > whole.len());
    assert_eq!(names(&folder.path("cache")), files);
}
