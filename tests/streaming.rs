//! Memory stays bounded whatever the checkpoint's size, and an interrupted or failing run leaves nothing behind.
#![cfg(target_os = "linux")] // reads /proc and sends signals

mod common;
#[path = "common/gguf.rs"]
mod gguf;

use common::*;
use monoquant::tensor::Float;
use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

/// A checkpoint of `layers` matrices of 64 MiB each, written without holding it in memory.
fn large(path: &Path, layers: usize) {
    const ROWS: usize = 8192;
    const COLS: usize = 4096;
    let bytes = ROWS * COLS * 2;
    let mut header = serde_json::Map::new();
    for i in 0..layers {
        let entry = serde_json::json!({"dtype": "BF16", "shape": [ROWS, COLS], "data_offsets": [i * bytes, (i + 1) * bytes]});
        header.insert(format!("model.layers.{i:03}.mlp.up_proj.weight"), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let block = monoquant::kernels::cases::data("gaussian", 1 << 20, Float::BF16, 5);
    for _ in 0..layers * bytes / block.len() {
        file.write_all(&block).unwrap();
    }
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap() as usize, 8 + header.len() + layers * bytes);
}

/// Largest anonymous memory that was seen while the process ran, and its exit code.
fn peak(mut child: Child) -> (u64, Option<i32>) {
    let mut peak = 0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        // a software GPU's buffers may be shared memory
        let kib = |field: &str| -> u64 {
            let line = status.lines().find(|l| l.starts_with(field));
            line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
        };
        peak = peak.max((kib("RssAnon:") + kib("RssShmem:")) << 10);
        if let Some(status) = child.try_wait().unwrap() {
            return (peak, status.code());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn memory_does_not_grow_with_the_checkpoint() {
    let folder = Folder::new();
    let model = folder.text("large.safetensors");
    large(Path::new(&model), 33);
    assert!(std::fs::metadata(&model).unwrap().len() > 2 << 30);
    let out = folder.text("out.safetensors");
    for (device, recipe, limit) in [
        ("cpu", &["-b", "4"][..], 512u64 << 20),
        ("cpu", &["-b", "8", "--max-memory", "128MiB"], 128 << 20),
        ("gpu", &["-b", "4"], 512 << 20),
    ] {
        let arguments = [&["quantize", "-m", &model, "-o", &out, "-f", "-q", "-d", device], recipe].concat();
        let child = command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let (peak, code) = peak(child);
        assert_eq!(code, Some(0));
        println!("{device} {recipe:?}: {} MiB", peak >> 20);
        assert!(peak > 0 && peak <= limit, "{device} {recipe:?}: {} MiB of anonymous memory", peak >> 20);
    }
}

/// A GGUF model of matrices of 64 MiB each, with a tokenizer of some megabytes.
fn large_gguf(path: &Path, layers: usize) {
    let tokens: Vec<String> = (0..200_000).map(|i| format!("token {i}")).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let keys =
        [gguf::string("general.architecture", "llama"), gguf::strings("tokenizer.ggml.tokens", &tokens)];
    let bytes = 8192 * 4096 * 2;
    let tensors: Vec<_> = (0..layers as u64)
        .map(|i| gguf::Tensor {
            offset: Some(i * bytes),
            ..gguf::tensor(&format!("blk.{i}.ffn_up.weight"), &[4096, 8192], gguf::BF16, &[])
        })
        .collect();
    let mut head = gguf::Gguf::new(&keys, &tensors).head();
    head.resize(head.len().next_multiple_of(32), 0);
    let mut file = File::create(path).unwrap();
    file.write_all(&head).unwrap();
    let block = monoquant::kernels::cases::data("gaussian", 1 << 20, Float::BF16, 5);
    for _ in 0..layers as u64 * bytes / block.len() as u64 {
        file.write_all(&block).unwrap();
    }
}

#[test]
fn memory_does_not_grow_with_a_gguf_model() {
    let folder = Folder::new();
    let [model, coded, floats] = ["large.gguf", "coded.gguf", "floats.gguf"].map(|name| folder.text(name));
    large_gguf(Path::new(&model), 8);
    for arguments in [
        &["quantize", "-m", &model, "-o", &coded, "-p", "q8_0"][..],
        &["quantize", "-m", &model, "-o", &coded, "-p", "q4_0"],
        &["dequantize", "-m", &coded, "-o", &floats],
    ] {
        let arguments = [arguments, &["-f", "-q", "-d", "cpu", "--max-memory", "128MiB"]].concat();
        let child = command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let (peak, code) = peak(child);
        assert_eq!(code, Some(0));
        println!("{arguments:?}: {} MiB", peak >> 20);
        assert!(peak > 0 && peak <= 128 << 20, "{arguments:?}: {} MiB of anonymous memory", peak >> 20);
    }
}

/// Waits until a run has begun to write: its hidden file stands beside the output.
fn started(folder: &Folder) {
    while !names(folder.root()).iter().any(|n| n.starts_with(".out.safetensors.monoquant-")) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn ctrl_c_leaves_the_old_state_and_no_litter() {
    let folder = Folder::new();
    let model = folder.text("large.safetensors");
    large(Path::new(&model), 8);
    let out = folder.path("out.safetensors");
    std::fs::write(&out, "what was there").unwrap();
    for (signal, wait) in [("-INT", 0), ("-TERM", 100), ("-INT", 200)] {
        let arguments =
            ["quantize", "-m", &model, "-o", out.to_str().unwrap(), "-f", "-b", "4", "--observer", "mse"];
        let child = command(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        started(&folder);
        std::thread::sleep(Duration::from_millis(wait));
        let sent =
            std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("interrupted"), "{text}");
        assert_eq!(names(folder.root()), ["large.safetensors", "out.safetensors"]);
        assert_eq!(std::fs::read(&out).unwrap(), b"what was there");
    }
}

#[test]
fn a_checkpoint_that_shrinks_while_it_is_read_is_an_error() {
    let folder = Folder::new();
    let model = folder.path("large.safetensors");
    large(&model, 8);
    let arguments = [
        "quantize",
        "-m",
        model.to_str().unwrap(),
        "-o",
        &folder.text("out.safetensors"),
        "-b",
        "4",
        "--observer",
        "mse",
    ];
    let child = command(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    started(&folder);
    File::options().write(true).open(&model).unwrap().set_len(1 << 20).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("large.safetensors") && !text.contains("panicked"), "{text}");
    assert_eq!(names(folder.root()), ["large.safetensors"]);
}
