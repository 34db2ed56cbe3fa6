//! GGUF models: quantized to blocks, inspected, turned back, compared.
#![allow(missing_docs)]

mod common;
#[path = "common/gguf.rs"]
mod files;

use common::*;
use files::*;
use monoquant::{reader::Checkpoint, tensor::Float};
use serde_json::Value;
use std::path::Path;

const PRESETS: [(&str, u32, f64); 6] = [
    ("q8_0", 7, 40.0),
    ("q4_0", 2, 15.0),
    ("q4_1", 3, 15.0),
    ("q4_k_s", 14, 15.0),
    ("q4_k_m", 15, 15.0),
    ("q6_k", 18, 30.0),
];

fn floats(name: &str, dims: &[u64], float: Float, seed: u64) -> Tensor {
    let shape: Vec<usize> = dims.iter().rev().map(|&d| d as usize).collect();
    let kind = match float {
        Float::F32 => F32,
        Float::F16 => F16,
        Float::BF16 => BF16,
    };
    tensor(name, dims, kind, &weights(&shape, float, seed).2)
}

/// A small Llama with stacked experts: rows of 256 and 512 weights, and some that fit no block of 256, or none at all.
fn model(float: Float) -> Gguf {
    let keys = [
        string("general.architecture", "llama"),
        number("general.file_type", 1),
        number("llama.block_count", 2),
        strings("tokenizer.ggml.tokens", &["<s>", "", "\u{2581}the", "b"]),
        key("tokenizer.ggml.scores", ARRAY, &array(6, 4, &[0x40; 16])),
        key("llama.rope.freq_base", 6, &10_000f32.to_le_bytes()),
        string("tokenizer.chat_template", "{{ x }}"),
    ];
    let mut tensors = vec![floats("token_embd.weight", &[256, 64], float, 1)];
    for i in 0..2 {
        for (n, (name, dims)) in [
            ("attn_norm", &[256u64][..]),
            ("attn_q", &[256, 256]),
            ("attn_v", &[256, 64]),
            ("attn_output", &[256, 256]),
            ("ffn_gate_inp", &[256, 4]),
            ("ffn_up_exps", &[256, 512, 4]),
            ("ffn_down_exps", &[512, 256, 4]),
            ("odd", &[96, 16]),
            ("odder", &[40, 16]),
        ]
        .into_iter()
        .enumerate()
        {
            let float = if dims.len() == 1 { Float::F32 } else { float };
            tensors.push(floats(&format!("blk.{i}.{name}.weight"), dims, float, 10 * i + n as u64));
        }
    }
    tensors.push(floats("output_norm.weight", &[256], Float::F32, 7));
    tensors.push(floats("output.weight", &[256, 64], float, 8));
    Gguf::new(&keys, &tensors)
}

fn save_model(folder: &Folder, name: &str, float: Float) -> String {
    std::fs::write(folder.path(name), model(float).bytes()).unwrap();
    folder.text(name)
}

fn rows(report: &Value) -> impl Fn(&str) -> Value + '_ {
    |name| {
        let rows = report["tensors"].as_array().or(report.as_array()).unwrap();
        rows.iter().find(|r| r["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
    }
}

#[test]
fn every_preset_there_and_back() {
    let folder = Folder::new();
    let input = save_model(&folder, "m.gguf", Float::F16);
    let before = Checkpoint::open(Path::new(&input)).unwrap();
    for (preset, file_type, least) in PRESETS {
        let report = ok(&["quantize", "-m", &input, "--preset", preset, "-d", "cpu"]);
        let output = folder.text(&format!("m-{preset}.gguf"));
        assert_eq!(report["output"], output.as_str());
        assert!(report["sqnr_db"].as_f64().unwrap() > least, "{preset}: {}", report["sqnr_db"]);

        let after = Checkpoint::open(Path::new(&output)).unwrap();
        let (old, new) = (before.gguf().unwrap(), after.gguf().unwrap());
        let names: Vec<_> = new.names().collect();
        assert_eq!(names[..old.len()], old.names().collect::<Vec<_>>());
        assert_eq!(names[old.len()..], ["general.quantization_version", "monoquant.recipe"]);
        for name in old.names().filter(|n| *n != "general.file_type") {
            assert_eq!(old.bytes(name), new.bytes(name), "{name}");
        }
        assert_eq!(new.number("general.file_type"), Some(file_type.into()));
        assert_eq!(new.number("general.quantization_version"), Some(2));
        let recipe: Value = serde_json::from_str(new.text("monoquant.recipe").unwrap()).unwrap();
        assert_eq!(recipe["recipe"]["preset"], preset);
        let shapes = |c: &Checkpoint| -> Vec<_> {
            c.tensors().iter().map(|t| (t.info.name.clone(), t.shape())).collect()
        };
        assert_eq!(shapes(&before), shapes(&after));

        let inspection = ok(&["inspect", &output]);
        let kinds: Vec<&str> = inspection["kinds"].as_object().unwrap().keys().map(String::as_str).collect();
        assert!(kinds.contains(&"F32") && kinds.contains(&"F16"), "{kinds:?}");
        assert_eq!(inspection["recipe"]["preset"], preset);
        assert_eq!(ok(&["validate", &output])["problems"], serde_json::json!([]));

        let comparison = ok(&["compare", &input, &output]);
        assert!(comparison["sqnr_db"].as_f64().unwrap() > least);
        let reported = report["sqnr_db"].as_f64().unwrap();
        for difference in comparison["differences"].as_array().unwrap() {
            let entry = rows(&report)(difference["name"].as_str().unwrap());
            if let Some(db) = entry["sqnr_db"].as_f64() {
                let other = difference["sqnr_db"].as_f64().unwrap();
                assert!((db - other).abs() < 0.01, "{preset} {entry} {difference} {reported}");
            }
        }
        let floats = folder.text("floats.gguf");
        ok(&["dequantize", "-m", &output, "-o", &floats, "-f", "-d", "cpu", "--dtype", "f32"]);
        assert_eq!(ok(&["compare", &output, &floats])["sqnr_db"], 999.0);
        let back = Checkpoint::open(Path::new(&floats)).unwrap();
        assert_eq!(back.gguf().unwrap().number("general.file_type"), Some(0));
        assert_eq!(back.gguf().unwrap().text("monoquant.recipe"), None);
        assert_eq!(back.gguf().unwrap().len(), old.len() + 1);
        // blocks become F16, and the output may be of another format
        let tensors = folder.text("floats.safetensors");
        ok(&["dequantize", "-m", &output, "-o", &tensors, "-f", "-d", "cpu"]);
        assert!(load(Path::new(&tensors)).values().all(|(_, shape, _)| shape.len() < 2 || shape[0] > 1));
        assert!(ok(&["compare", &output, &tensors])["sqnr_db"].as_f64().unwrap() > 55.0);
        assert_eq!(refused(&["quantize", "-m", &output, "-b", "8"]).matches("already quantized").count(), 1);
    }
    let twice = refused(&["dequantize", "-m", &input]);
    assert!(twice.contains("no quantized tensor found"), "{twice}");
}

#[test]
fn types_are_llama_quantizes() {
    let folder = Folder::new();
    let input = save_model(&folder, "m.gguf", Float::BF16);
    let plan = ok(&["quantize", "-m", &input, "-b", "4", "--dry-run"]);
    let row = rows(&plan);
    let action = |name: &str| row(name)["action"].as_str().unwrap().to_owned();
    let reason = |name: &str| row(name)["reason"].as_str().unwrap().to_owned();
    assert_eq!(action("blk.0.attn_q.weight"), "Q4_K");
    assert_eq!(action("output.weight"), "Q6_K");
    assert_eq!(action("token_embd.weight"), "Q4_K");
    // of two layers, the second lies in the last eighth
    assert_eq!(
        [action("blk.0.ffn_down_exps.weight"), action("blk.1.ffn_down_exps.weight")],
        ["Q4_K", "Q6_K"]
    );
    assert_eq!(reason("blk.0.ffn_gate_inp.weight"), "MoE router");
    assert_eq!(reason("blk.0.attn_norm.weight"), "norm, bias or other 1-D tensor");
    assert_eq!(action("blk.0.odd.weight"), "Q8_0");
    assert_eq!(
        reason("blk.0.odd.weight"),
        "rows of 96 weights are no whole blocks of 256; llama-quantize takes Q5_0, which is not written"
    );
    assert_eq!(action("blk.0.odder.weight"), "cast to F16");
    assert_eq!(reason("blk.0.odder.weight"), "rows of 40 weights are no whole blocks of 32");
    let plan = ok(&[
        "quantize",
        "-m",
        &input,
        "-b",
        "8",
        "--dry-run",
        "--exclude",
        "attn_v",
        "--min-params",
        "1000",
    ]);
    let row = rows(&plan);
    assert_eq!(row("output.weight")["action"], "Q8_0");
    assert_eq!(row("blk.1.attn_v.weight")["reason"], "excluded by --exclude 'attn_v'");
    assert_eq!(row("blk.1.odder.weight")["reason"], "fewer than --min-params 1000 weights (640)");
    let plan = ok(&["quantize", "-m", &input, "-b", "16", "--dry-run"]);
    let row = rows(&plan);
    assert_eq!(row("blk.0.attn_q.weight")["action"], "cast to F16");
    assert_eq!(row("blk.0.ffn_gate_inp.weight")["action"], "kept");
}

#[test]
fn tiles_and_shards_make_no_difference() {
    let folder = Folder::new();
    let input = save_model(&folder, "m.gguf", Float::F32);
    let whole = model(Float::F32);
    for (i, tensors) in whole.tensors.chunks(whole.tensors.len().div_ceil(2)).enumerate() {
        let mut shard = Gguf::new(if i == 0 { &whole.keys } else { &[] }, tensors);
        shard.keys.push(key("split.no", U16, &(i as u16).to_le_bytes()));
        shard.keys.push(key("split.count", U16, &2u16.to_le_bytes()));
        shard.keys.push(key("split.tensors.count", I32, &(whole.tensors.len() as i32).to_le_bytes()));
        std::fs::write(folder.path(&format!("s-0000{}-of-00002.gguf", i + 1)), shard.bytes()).unwrap();
    }
    let shard = folder.text("s-00002-of-00002.gguf");
    for preset in ["q4_k_m", "q4_0", "bf16"] {
        let one = ok(&["quantize", "-m", &input, "-p", preset, "-d", "cpu", "-f"]);
        let other = ok(&["quantize", "-m", &shard, "-p", preset, "-d", "cpu", "-f", "--tile-bytes", "3000"]);
        assert_eq!(other["output"], folder.text(&format!("s-{preset}.gguf")).as_str());
        let bytes = |report: &Value| std::fs::read(report["output"].as_str().unwrap()).unwrap();
        assert!(bytes(&one) == bytes(&other), "{preset}");
    }
}

#[test]
fn a_gpu_writes_the_same_bytes() {
    let folder = Folder::new();
    let input = save_model(&folder, "m.gguf", Float::BF16);
    let [cpu, gpu] = ["cpu", "gpu"].map(|device| folder.text(&format!("{device}.gguf")));
    let same = |command: &str, input: &str, options: &[&str]| {
        for (device, output) in [("cpu", &cpu), ("gpu", &gpu)] {
            ok(&[&[command, "-m", input, "-o", output, "-f", "-d", device][..], options].concat());
        }
        assert!(std::fs::read(&cpu).unwrap() == std::fs::read(&gpu).unwrap(), "{command} {options:?}");
    };
    let coded = folder.path("coded.gguf");
    for preset in ["q8_0", "q4_0", "q4_1", "q4_k_m"] {
        same("quantize", &input, &["-p", preset]);
        std::fs::copy(&cpu, &coded).unwrap();
        same("dequantize", coded.to_str().unwrap(), &[]);
    }
}

#[test]
fn what_is_refused() {
    let folder = Folder::new();
    let gguf = save_model(&folder, "m.gguf", Float::F16);
    let tensors = folder.text("m.safetensors");
    save(Path::new(&tensors), &llama(Float::F16));
    let says = |arguments: &[&str], parts: &[&str]| {
        let text = refused(arguments);
        parts.iter().for_each(|part| assert!(text.contains(part), "`{part}` is not in {text}"));
    };
    let accepted = "accepted: --preset fp16, bf16, q8_0, q4_0, q4_1, q4_k_s, q4_k_m, q6_k";
    says(&["quantize", "-m", &gguf, "-p", "w4a16"], &["w4a16 makes int4 or int8 codes", accepted]);
    says(
        &["quantize", "-m", &gguf, "-b", "4", "-g", "64"],
        &["--group-size have no meaning for GGUF", accepted],
    );
    says(
        &["quantize", "-m", &gguf, "-p", "q4_0", "-g", "64"],
        &["--group-size has no meaning for q4_0, a mixture"],
    );
    says(&["quantize", "-m", &gguf, "-b", "4", "--layer-types", "conv2d"], &["--layer-types has no meaning"]);
    says(
        &["quantize", "-m", &tensors, "-p", "q4_k_m"],
        &[
            "q4_k_m writes GGUF, which needs a GGUF model",
            "convert_hf_to_gguf.py",
            "--preset w4a16, w8a16, w8a8",
        ],
    );
    says(
        &["quantize", "-m", &tensors, "-p", "bf16", "-o", &folder.text("x.gguf")],
        &["x.gguf: a GGUF file also says how the model is built"],
    );
    says(
        &["quantize", "-m", &gguf, "-b", "8", "-o", &folder.text("x.safetensors")],
        &["x.safetensors: only GGUF files hold blocks; accepted: --output NAME.gguf"],
    );
    says(&["quantize", "-m", &gguf, "-b", "8", "--include", "nothing"], &["no tensor is left to change"]);
    assert_eq!(names(folder.root()), ["m.gguf", "m.safetensors"]);
}

#[test]
fn values_that_blocks_cannot_hold() {
    let folder = Folder::new();
    let keys = [string("general.architecture", "llama")];
    let write = |value: f32| {
        let mut data = vec![0; 2048];
        data[512..516].copy_from_slice(&value.to_le_bytes());
        let tensors = [
            tensor("blk.0.attn_q.weight", &[256, 2], F32, &data),
            tensor("w.weight", &[32, 8], F32, &[0; 1024]),
        ];
        std::fs::write(folder.path("m.gguf"), Gguf::new(&keys, &tensors).bytes()).unwrap();
    };
    let m = folder.text("m.gguf");
    write(1e30);
    let text = refused(&["quantize", "-m", &m, "-b", "8", "-d", "cpu"]);
    assert!(
        text.contains("blk.0.attn_q.weight: 1 block from row 0 on needs scales beyond the largest F16"),
        "{text}"
    );
    write(f32::NAN);
    let text = refused(&["quantize", "-m", &m, "-b", "8", "-d", "cpu"]);
    assert!(text.contains("blk.0.attn_q.weight: 1 value is not finite"), "{text}");
    assert_eq!(names(folder.root()), ["m.gguf"]);
    let report = ok(&["quantize", "-m", &m, "-b", "8", "-d", "cpu", "--on-nonfinite", "keep"]);
    assert_eq!(rows(&report)("blk.0.attn_q.weight")["action"], "kept");
    // a damaged scale
    let path = folder.path("m-q8_0.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = Checkpoint::open(&path).unwrap().tensors()[1].start as usize;
    bytes[at..at + 2].copy_from_slice(&[0, 0x7e]);
    std::fs::write(&path, bytes).unwrap();
    let text = refused(&["validate", path.to_str().unwrap()]);
    assert!(
        text.contains("w.weight: the scales of 1 Q8_0 blocks are not finite, the first in block 0"),
        "{text}"
    );
    let text = refused(&["dequantize", "-m", path.to_str().unwrap(), "-d", "cpu"]);
    assert!(text.contains("the scales are damaged"), "{text}");
}
