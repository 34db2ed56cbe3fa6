//! `--profile`: a Chrome trace that viewers take, with every stage of a run.

mod common;

use common::*;
use monoquant::{
    device,
    plan::{OnMismatch, Request},
    profile::{Profile, Stage},
    quantize::{OnNonFinite, Settings, execute, prepare},
    recipe::Recipe,
    scheme::preset,
    tensor::Float,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Instant,
};

/// A complete event.
struct Event {
    stage: String,
    name: String,
    track: String,
    start: u64,
    end: u64,
    tensor: Option<String>,
    bytes: Option<u64>,
}

/// Reads a trace as the format's description has it: every event has what its kind needs, and those of one track lie
/// inside or beside each other.
fn trace(path: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(path).unwrap();
    let all: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let mut tracks = BTreeMap::new();
    let mut events = Vec::new();
    for event in &all {
        let name = event["name"].as_str().unwrap().to_owned();
        assert!(event["pid"].is_u64() && event["args"].is_object(), "{event}");
        match event["ph"].as_str().unwrap() {
            "M" if name == "thread_name" => {
                let named = tracks.insert(
                    event["tid"].as_u64().unwrap(),
                    event["args"]["name"].as_str().unwrap().to_owned(),
                );
                assert!(named.is_none(), "{event}");
            }
            "M" => assert!(["process_name", "thread_sort_index"].contains(&name.as_str()), "{event}"),
            "X" => {
                let nanos = |field: &str| {
                    let micros = event[field].as_f64().unwrap();
                    assert!(micros >= 0.0 && micros.is_finite(), "{event}");
                    (micros * 1000.0).round() as u64
                };
                events.push(Event {
                    stage: event["cat"].as_str().unwrap().to_owned(),
                    name,
                    track: tracks[&event["tid"].as_u64().unwrap()].clone(), // named before its first event
                    start: nanos("ts"),
                    end: nanos("ts") + nanos("dur"),
                    tensor: event["args"]["tensor"].as_str().map(str::to_owned),
                    bytes: event["args"]["bytes"].as_u64(),
                });
            }
            other => panic!("a {other} event: {event}"),
        }
    }
    for track in tracks.values() {
        let mut own: Vec<&Event> = events.iter().filter(|e| e.track == *track).collect();
        own.sort_by_key(|e| (e.start, std::cmp::Reverse(e.end)));
        let mut open: Vec<u64> = Vec::new();
        for event in own {
            open.retain(|&end| end > event.start);
            assert!(open.iter().all(|&end| event.end <= end), "{track}: {} of {}", event.stage, event.start);
            open.push(event.end);
        }
    }
    events
}

fn stages(events: &[Event]) -> BTreeSet<&str> {
    events.iter().map(|e| e.stage.as_str()).collect()
}

fn bytes(events: &[Event], stage: Stage) -> u64 {
    events.iter().filter(|e| e.stage == stage.name()).filter_map(|e| e.bytes).sum()
}

fn model(folder: &Folder) -> String {
    directory(&folder.path("model"), &llama(Float::BF16), &llama_config());
    folder.text("model")
}

#[test]
fn every_command_records_its_stages_on_the_cpu() {
    let folder = Folder::new();
    let model = model(&folder);
    let [coded, other, floats] = ["coded", "other", "floats"].map(|name| folder.text(name));
    for (arguments, kernels) in [
        (&["quantize", "-m", &model, "-o", &coded, "-b", "4", "--group-size", "32"][..], true),
        (&["convert", "-m", &coded, "-o", &other, "--format", "gptq"], false),
        (&["dequantize", "-m", &coded, "-o", &floats], true),
    ] {
        let file = folder.path(&format!("{}.json", arguments[0]));
        let file_name = file.to_str().unwrap();
        ok(&[arguments, &["-d", "cpu", "--profile", file_name]].concat());
        let events = trace(&file);
        let mut expected = BTreeSet::from(["plan", "device", "verify", "create", "read", "write", "commit"]);
        if kernels {
            expected.extend(["kernel", "wait", "store"]);
        }
        assert_eq!(stages(&events), expected, "{arguments:?}");
        for event in &events {
            let moves = ["read", "kernel", "store", "write"].contains(&event.stage.as_str());
            assert_eq!(event.tensor.is_some() && event.bytes.is_some(), moves, "{}", event.stage);
            // kernels are not run by the thread that reads and writes
            assert_eq!(event.stage == "kernel", event.track.starts_with("worker "), "{}", event.track);
        }
    }
    // all that a file holds beside its header was written under some tensor's name
    let events = trace(&folder.path("dequantize.json"));
    let written: usize = load(&folder.path("floats/model.safetensors")).values().map(|(.., b)| b.len()).sum();
    assert_eq!(bytes(&events, Stage::Write), written as u64);
    let read: usize = load(&folder.path("model/model.safetensors")).values().map(|(.., b)| b.len()).sum();
    let quantized = trace(&folder.path("quantize.json"));
    assert_eq!(bytes(&quantized, Stage::Read), read as u64);
    let named = quantized.iter().filter(|e| e.stage == "kernel");
    let names: BTreeSet<(&str, &str)> =
        named.map(|e| (e.name.as_str(), e.tensor.as_deref().unwrap())).collect();
    assert!(names.iter().all(|(kernels, _)| kernels.contains("quantize")), "{names:?}");
    assert!(names.iter().any(|(_, t)| *t == "model.layers.1.mlp.down_proj.weight"), "{names:?}");
}

#[test]
fn on_a_gpu_tiles_in_flight_have_tracks_of_their_own() {
    let folder = Folder::new();
    let model = model(&folder);
    let file = folder.text("trace.json");
    let arguments = ["quantize", "-m", &model, "-o", &folder.text("out"), "-b", "8", "-d", "gpu"];
    ok(&[&arguments[..], &["--profile", &file, "--tile-bytes", "2KiB"]].concat());
    let events = trace(Path::new(&file));
    assert_eq!(stages(&events), Stage::ALL.map(Stage::name).into());
    let flights: Vec<&Event> = events.iter().filter(|e| e.stage == "kernel").collect();
    assert!(flights.iter().all(|e| e.track.contains(" in flight") && e.tensor.is_some()));
    let uploads = events.iter().filter(|e| e.stage == "upload").count();
    let readbacks = events.iter().filter(|e| e.stage == "readback").count();
    assert_eq!((uploads, readbacks), (flights.len(), flights.len()));
}

#[test]
fn a_profile_changes_no_byte_and_closes_when_a_run_fails() {
    let folder = Folder::new();
    let model = folder.path("model.safetensors");
    let mut tensors = llama(Float::BF16);
    save(&model, &tensors);
    let run = |out: &str, profile: Option<Profile>| {
        let request = Request {
            recipe: Recipe::new(preset("w4a16").unwrap()),
            formats: vec![monoquant::formats::ALL[0]],
            symmetry_stated: false,
            on_mismatch: OnMismatch::Shrink,
            saturate: false,
            max_shard_size: None,
        };
        let settings = Settings {
            output: Some(folder.path(out)),
            device: device::Choice::Cpu,
            profile,
            ..Settings::default()
        };
        let mut device = device::open(&settings.device, &settings.gpu)?;
        let prepared = prepare(&model, &request, OnNonFinite::Refuse, &settings)?;
        execute(&prepared, &mut device, &settings, &false.into(), &|_| {})
    };
    let create = |name: &str| Profile::create(&folder.path(name), Instant::now()).unwrap();
    let profile = create("whole.json");
    run("with.safetensors", Some(profile.clone())).unwrap();
    profile.finish().unwrap();
    assert!(stages(&trace(&folder.path("whole.json"))).contains("commit"));
    run("without.safetensors", None).unwrap();
    let read = |name: &str| std::fs::read(folder.path(name)).unwrap();
    assert!(read("with.safetensors") == read("without.safetensors"));

    let down = tensors.get_mut("model.layers.1.mlp.down_proj.weight").unwrap();
    down.2[..2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    save(&model, &tensors);
    let profile = create("part.json");
    run("never.safetensors", Some(profile.clone())).unwrap_err();
    profile.finish().unwrap();
    let [never, file] = ["never.safetensors", "by-command.json"].map(|name| folder.text(name));
    let arguments = ["quantize", "-m", model.to_str().unwrap(), "-o", &never, "-d", "cpu"];
    refused(&[&arguments[..], &["--on-mismatch", "shrink", "--profile", &file]].concat());
    for name in ["part.json", "by-command.json"] {
        let part = trace(&folder.path(name));
        assert!(stages(&part).contains("store") && !stages(&part).contains("commit"), "{name}");
    }
}
