//! kill -9 at random moments of a run: what stood before stands, and --resume ends with the bytes of a run that was let be.
//!
//! MONOQUANT_KILLS says how many (tests/crash runs 200), MONOQUANT_SEED which moments.

mod common;

use common::*;
use monoquant::{kernels::cases::Random, tensor::Float};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

type Files = BTreeMap<String, Vec<u8>>;

fn files(path: &Path) -> Files {
    names(path).into_iter().map(|name| (name.clone(), fs::read(path.join(&name)).unwrap())).collect()
}

/// Linear layers of 2048 × 512, each of which becomes a file of its own or half of one.
fn model(path: &Path, layers: usize) {
    let mut tensors = Tensors::new();
    for layer in 0..layers {
        let name = format!("model.layers.{layer:03}.mlp.up_proj.weight");
        tensors.insert(name, weights(&[2048, 512], Float::BF16, layer as u64));
    }
    directory(path, &tensors, &llama_config());
    fs::remove_dir_all(path.join("extra")).unwrap();
}

fn arguments<'a>(model: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["quantize", "-m", model, "-o", out, "-b", "8", "--observer", "mse", "-d", "cpu", "-f"];
    [&fixed[..], &["--max-shard-size", "2MB"], more].concat()
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// What a killed run had come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Planning,
    Begun,
    SomeFinished,
    AllFinished,
    InPlace,
}

fn stage(folder: &Folder, new: bool, all: usize) -> (Stage, usize) {
    let partial = folder.path(".out.monoquant-partial");
    let manifest = fs::read(partial.join("manifest.json")).ok();
    let finished = manifest.map_or(0, |bytes| {
        let manifest: Value = serde_json::from_slice(&bytes).expect("a manifest is whole or not there");
        manifest["finished"].as_array().unwrap().len()
    });
    let stage = match finished {
        _ if new => Stage::InPlace,
        n if n == all => Stage::AllFinished,
        1.. => Stage::SomeFinished,
        _ if partial.exists() => Stage::Begun,
        _ => Stage::Planning,
    };
    (stage, finished)
}

/// A report without what differs from run to run.
fn told(mut report: Value) -> Value {
    for key in ["seconds", "dispatches", "output"] {
        report[key] = Value::Null;
    }
    report
}

#[test]
fn a_run_that_is_killed_at_any_moment_loses_nothing() {
    let folder = Folder::new();
    let [model_path, whole, out] = ["model", "whole", "out"].map(|name| folder.text(name));
    // a run of two seconds or more, of eight files or more
    let (mut layers, mut took) = (20, Duration::ZERO);
    let mut report = Value::Null;
    while took < Duration::from_secs(2) && layers <= 512 {
        layers = layers * 3 / 2;
        let _ = fs::remove_dir_all(&model_path);
        model(Path::new(&model_path), layers);
        let start = Instant::now();
        report = told(ok(&arguments(&model_path, &whole, &[])));
        took = start.elapsed();
    }
    let new = files(Path::new(&whole));
    let all = new.keys().filter(|name| name.ends_with(".safetensors")).count();
    assert!(all >= 8, "{all} files");
    let old: Files = [("config.json".to_owned(), b"what stood before".to_vec())].into();

    let kills = setting("MONOQUANT_KILLS").unwrap_or(24);
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
    let seed = setting("MONOQUANT_SEED").unwrap_or_else(clock);
    println!("{kills} kills over {took:.1?}, {all} files, MONOQUANT_SEED={seed}");
    let mut random = Random(seed);
    let mut stages: BTreeMap<Stage, usize> = BTreeMap::new();
    for kill in 0..kills {
        let _ = fs::remove_dir_all(&out);
        fs::create_dir(&out).unwrap();
        fs::write(Path::new(&out).join("config.json"), "what stood before").unwrap();
        // most of them one in every part of the run, at random in it
        let part = (kill as f64 + random.next_u64() as f64 / u64::MAX as f64) / kills as f64;
        let mut killed = command(&arguments(&model_path, &out, &[]));
        let mut child = killed.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // of any length up to a tenth of a second, the short ones as often as the long ones
        let mut moment = || Duration::from_nanos(1000 << (random.next_u64() % 18)).mul_f64(1.5);
        match kill % 8 {
            // in the beginning
            6 => sleep(moment()),
            // when all files are finished, and are about to be moved
            7 => {
                while stage(&folder, false, all).0 < Stage::AllFinished && child.try_wait().unwrap().is_none()
                {
                }
                sleep(moment());
            }
            _ => sleep(took.mul_f64(part * 1.02)),
        }
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();

        let stands = files(Path::new(&out));
        assert!(
            stands == old || stands == new,
            "kill {kill} of seed {seed}: neither the old nor the new output"
        );
        let (stage, finished) = stage(&folder, stands == new, all);
        *stages.entry(stage).or_default() += 1;

        let output =
            run(&arguments(&model_path, &out, &["--resume", "--report", &folder.text("report.json")]));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kill {kill} of seed {seed}, {stage:?}: {text}");
        assert!(files(Path::new(&out)) == new, "kill {kill} of seed {seed}, {stage:?}: other bytes");
        let resumed: Value = serde_json::from_slice(&fs::read(folder.path("report.json")).unwrap()).unwrap();
        assert!(told(resumed) == report, "kill {kill} of seed {seed}, {stage:?}: another report");
        if finished > 0 {
            let said = format!("--resume: {finished} of {finished} files");
            assert!(text.contains(&said), "kill {kill} of seed {seed}, {stage:?}: {text}");
        }
        assert_eq!(names(folder.root()), ["model", "out", "report.json", "whole"]);
    }
    println!("{stages:?}");
    assert!(stages.contains_key(&Stage::SomeFinished), "{stages:?}");
}
