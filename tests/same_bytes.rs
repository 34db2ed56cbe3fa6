//! Output files are the same, byte for byte, whatever device, tile size, sharding or run made them.

mod common;

use common::*;
use monoquant::{
    gpu::{self, GpuBackend, GpuOptions},
    kernels,
    tensor::Float,
};

/// Every scheme, observer and layout, once.
const RECIPES: [&[&str]; 16] = [
    &["--bits", "4", "--group-size", "32"],
    &["--bits", "4", "--group-size", "64", "--scheme", "asymmetric"],
    &["--bits", "4", "--strategy", "channel"],
    &["--bits", "4", "--group-size", "16", "--observer", "mse"],
    &["--bits", "4", "--group-size", "64", "--observer", "mse", "--scheme", "asymmetric"],
    &["--bits", "4", "--group-size", "8", "--observer", "percentile", "--percentile", "99"],
    &["--bits", "4", "--group-size", "32", "--observer", "histogram"],
    &["--bits", "8"],
    &["--bits", "8", "--scheme", "asymmetric"],
    &["--bits", "8", "--strategy", "tensor"],
    &["--bits", "8", "--strategy", "tensor", "--observer", "mse"],
    &["--bits", "8", "--strategy", "tensor", "--observer", "histogram", "--scheme", "asymmetric"],
    &["--bits", "8", "--observer", "mse", "--scale-sign", "positive"],
    &["--bits", "8", "--group-size", "64"],
    &["--preset", "w8a16", "--observer", "percentile"],
    &["--preset", "bf16"],
];

fn quantize(folder: &Folder, input: &str, output: &str, recipe: &[&str], more: &[&str]) -> serde_json::Value {
    let (model, out) = (folder.text(input), folder.text(output));
    ok(&[&["quantize", "-m", &model, "-o", &out, "--force"], recipe, more].concat())
}

#[test]
fn the_gpu_and_the_cpu_write_the_same_files() {
    let folder = Folder::new();
    for float in Float::ALL {
        directory(&folder.path("model"), &llama(float), &llama_config());
        for recipe in RECIPES {
            if recipe.contains(&"bf16") && float == Float::BF16 {
                continue;
            }
            quantize(&folder, "model", "cpu", recipe, &["--device", "cpu"]);
            let report = quantize(&folder, "model", "gpu", recipe, &["--device", "gpu"]);
            let files = ["model.safetensors", "config.json"];
            for file in files {
                let [cpu, gpu] = ["cpu", "gpu"].map(|d| std::fs::read(folder.path(d).join(file)).unwrap());
                assert!(cpu == gpu, "{float:?} {recipe:?}: {file} differs");
            }
            // it was the GPU that computed: every tensor that changed took a dispatch of the last kernel
            let changed =
                report["tensors"].as_array().unwrap().iter().filter(|t| t["action"] != "kept").count();
            let cast = recipe.contains(&"--preset") && recipe.contains(&"bf16");
            let last = if cast { &["convert"][..] } else { &["quantize", "quantize_pack"] };
            let dispatched: u64 = last.iter().filter_map(|k| report["dispatches"][k].as_u64()).sum();
            assert_eq!(dispatched, changed as u64, "{recipe:?}");
            assert!(!report["device"].as_str().unwrap().starts_with("CPU"));
        }
    }
}

#[test]
fn any_tile_size_and_any_run_gives_the_same_file() {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::BF16), &llama_config());
    for (i, recipe) in RECIPES.iter().enumerate() {
        if recipe.contains(&"bf16") {
            continue;
        }
        quantize(&folder, "model", "whole", recipe, &["--device", "cpu"]);
        let whole = std::fs::read(folder.path("whole/model.safetensors")).unwrap();
        for (device, tile) in [("cpu", "128B"), ("cpu", "1000B"), ("cpu", "1MB"), ("gpu", "1000B")] {
            if device == "gpu" && i % 3 != 0 {
                continue; // a third of the recipes has every sweep
            }
            quantize(&folder, "model", "tiled", recipe, &["--device", device, "--tile-bytes", tile]);
            let tiled = std::fs::read(folder.path("tiled/model.safetensors")).unwrap();
            assert!(whole == tiled, "{recipe:?} on {device} in tiles of {tile}");
        }
    }
}

#[test]
fn shards_in_and_out_hold_the_same_tensors() {
    let folder = Folder::new();
    directory(&folder.path("one"), &llama(Float::F16), &llama_config());
    sharded(&folder.path("two"), &llama(Float::F16), &llama_config());
    let recipe = ["--bits", "4", "--group-size", "32"];
    quantize(&folder, "one", "from-one", &recipe, &[]);
    quantize(&folder, "two", "from-two", &recipe, &["--max-shard-size", "20kB"]);
    let whole = load(&folder.path("from-one/model.safetensors"));
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path("from-two/model.safetensors.index.json")).unwrap())
            .unwrap();
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), whole.len());
    let mut shards = std::collections::BTreeSet::new();
    let mut total = 0;
    for (name, file) in map {
        let file = file.as_str().unwrap();
        let tensors = load(&folder.path("from-two").join(file));
        assert!(tensors[name] == whole[name], "{name}");
        total += tensors[name].2.len();
        shards.insert(file.to_owned());
    }
    assert!(shards.len() > 2, "{shards:?}");
    assert_eq!(index["metadata"]["total_size"], total);
    for file in shards {
        let size: usize = load(&folder.path("from-two").join(&file)).values().map(|t| t.2.len()).sum();
        assert!(size <= 20_000, "{file} has {size} bytes");
    }
}

/// The comparison of files can fail: one wrong constant in the shaders shows in the file, and the check before a job
/// refuses such a device.
#[test]
fn one_corrupted_shader_constant_changes_the_file_and_is_refused() {
    use monoquant::{
        device,
        plan::{OnMismatch, Request},
        quantize::*,
        recipe::Recipe,
        scheme::preset,
    };
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::BF16), &llama_config());
    let request = |preset_name| Request {
        recipe: Recipe::new(preset(preset_name).unwrap()),
        formats: vec![monoquant::formats::ALL[0]],
        symmetry_stated: false,
        on_mismatch: OnMismatch::Channel,
        saturate: false,
        max_shard_size: None,
    };
    let corrupt = Some(("0x3c000000u", "0x3c800000u")); // the eps of bf16
    let run = |name: &str, corrupt, skip_check| {
        let settings = Settings {
            output: Some(folder.path(name)),
            device: device::Choice::Gpu,
            gpu: GpuOptions { corrupt, skip_check, ..Default::default() },
            ..Default::default()
        };
        let prepared = prepare(&folder.path("model"), &request("w8a16"), OnNonFinite::Refuse, &settings)?;
        let mut device = device::open(&settings.device, &settings.gpu)?;
        let report = execute(&prepared, &mut device, &settings, &false.into(), &|_| {})?;
        assert!(report.dispatches["quantize"] > 0);
        Ok::<_, monoquant::error::Error>(std::fs::read(folder.path(name).join("model.safetensors")).unwrap())
    };
    let mut tensors = llama(Float::BF16);
    let zeros = tensors.get_mut("model.layers.0.mlp.up_proj.weight").unwrap();
    zeros.2[..128].fill(0); // a row of zeros gets eps as its scale
    save(&folder.path("model/model.safetensors"), &tensors);
    let right = run("right", None, false).unwrap();
    let wrong = run("wrong", corrupt, true).unwrap();
    assert_eq!(right.len(), wrong.len());
    assert!(right != wrong, "the files do not show a wrong constant");

    let error = run("refused", Some(("12582912.0", "25165824.0")), false).unwrap_err().to_string();
    assert!(error.contains("quantize") && error.contains("--device cpu"), "{error}");
    assert!(!folder.path("refused").exists());
}

#[test]
fn auto_never_takes_a_software_rasterizer() {
    let software = gpu::adapters().iter().all(|a| a.facts.software);
    let report = {
        let folder = Folder::new();
        directory(&folder.path("model"), &llama(Float::BF16), &llama_config());
        quantize(&folder, "model", "out", &["--bits", "8"], &[])
    };
    let device = report["device"].as_str().unwrap();
    assert_eq!(device.starts_with("CPU"), software, "{device}");
}

#[test]
fn every_kernel_compiles_on_every_adapter() {
    for adapter in gpu::adapters() {
        let mut backend = GpuBackend::open(&adapter, GpuOptions::default()).unwrap();
        let outcome = backend.check(false).unwrap();
        assert!(outcome.cases > 1000 && outcome.differences.is_empty(), "{:?}", outcome.differences.first());
    }
    assert_eq!(kernels::ALL.len(), 16);
}
