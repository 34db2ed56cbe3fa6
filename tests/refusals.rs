//! Bad input and bad arguments: refused before the work, all problems at once, naming file and tensor; nothing written.

mod common;

use common::*;
use monoquant::tensor::Float;
use serde_json::json;

fn model(folder: &Folder) -> String {
    directory(&folder.path("model"), &llama(Float::BF16), &llama_config());
    folder.text("model")
}

#[test]
fn a_group_size_that_does_not_divide_names_every_layer_and_what_does() {
    let folder = Folder::new();
    let model = model(&folder);
    let text = refused(&["quantize", "-m", &model, "-b", "4"]);
    assert!(text.contains("14 problems"), "{text}");
    assert!(text.contains("model.layers.1.mlp.down_proj.weight: groups of 128 do not divide its rows of 192 weights; 64, 32, 16, 8 do"), "{text}");
    assert_eq!(names(folder.root()), ["model"]);

    let out = folder.text("out");
    let report = ok(&["quantize", "-m", &model, "-b", "4", "-o", &out, "-f", "--on-mismatch", "shrink"]);
    let down = |report: &serde_json::Value| {
        let tensors = report["tensors"].as_array().unwrap().clone();
        tensors.into_iter().find(|t| t["name"] == "model.layers.1.mlp.down_proj.weight").unwrap()
    };
    assert_eq!(down(&report)["scheme"]["strategy"]["group"]["group_size"], 64);
    assert!(down(&report)["reason"].as_str().unwrap().contains("shrunk from 128 to 64"));
    let report = ok(&["quantize", "-m", &model, "-b", "4", "-o", &out, "-f", "--on-mismatch", "channel"]);
    assert_eq!(down(&report)["scheme"]["strategy"], "channel");
    let text = refused(&["quantize", "-m", &model, "-b", "4", "-o", &out, "-f", "--on-mismatch", "keep"]);
    assert!(text.contains("no layer is left to quantize"), "{text}");
}

#[test]
fn what_is_there_is_not_replaced_without_force() {
    let folder = Folder::new();
    let model = model(&folder);
    let out = folder.text("out");
    ok(&["quantize", "-m", &model, "-o", &out]);
    let before = std::fs::read(folder.path("out/model.safetensors")).unwrap();
    let text = refused(&["quantize", "-m", &model, "-b", "4", "--group-size", "32", "-o", &out]);
    assert!(text.contains(&out) && text.contains("--force"), "{text}");
    assert_eq!(std::fs::read(folder.path("out/model.safetensors")).unwrap(), before);
    ok(&["quantize", "-m", &model, "-b", "4", "--group-size", "32", "-o", &out, "--force"]);
    assert_ne!(std::fs::read(folder.path("out/model.safetensors")).unwrap(), before);
    let text = refused(&["quantize", "-m", &model, "-o", &model, "--force"]);
    assert!(text.contains("replace the input"), "{text}");
    assert_eq!(names(folder.root()), ["model", "out"]);
    std::fs::create_dir(folder.path("made")).unwrap();
    ok(&["quantize", "-m", &model, "-o", &folder.text("made")]);
    assert!(folder.path("made/model.safetensors").exists(), "an empty folder may be filled");
    let text = refused(&[
        "quantize",
        "-m",
        &model,
        "-o",
        &folder.text("new"),
        "--report",
        &folder.text("no/r.json"),
    ]);
    assert!(text.contains("--report") && !folder.path("new").exists(), "{text}");
}

#[test]
fn quantized_input_is_refused() {
    let folder = Folder::new();
    let model = model(&folder);
    let out = folder.text("out");
    ok(&["quantize", "-m", &model, "-o", &out]);
    let text = refused(&["quantize", "-m", &out, "-b", "8"]);
    assert!(
        text.contains("already quantized")
            && text.contains("compressed-tensors")
            && text.contains("dequantize"),
        "{text}"
    );
    std::fs::remove_file(folder.path("out/config.json")).unwrap();
    let text = refused(&["quantize", "-m", &out, "-b", "8"]);
    assert!(text.contains("already quantized") && text.contains("weight"), "{text}");
}

#[test]
fn every_problem_is_found_at_once() {
    let folder = Folder::new();
    let mut tensors = llama(Float::F32);
    let name = "model.layers.0.mlp.up_proj.weight";
    tensors.insert(name.into(), (safetensors::Dtype::F64, vec![192, 64], vec![0; 192 * 64 * 8]));
    directory(&folder.path("model"), &tensors, &llama_config());
    std::fs::create_dir(folder.path("out")).unwrap();
    std::fs::write(folder.path("out/file"), "mine").unwrap();
    let text = refused(&[
        "quantize",
        "-m",
        &folder.text("model"),
        "-b",
        "4",
        "--group-size",
        "64",
        "-o",
        &folder.text("out"),
    ]);
    assert!(
        text.contains("2 problems") && text.contains("F64") && text.contains(name) && text.contains("exists"),
        "{text}"
    );
    assert!(text.contains("F32, F16 and BF16"), "{text}");
    assert_eq!(names(&folder.path("out")), ["file"]);
    let report = ok(&[
        "quantize",
        "-m",
        &folder.text("model"),
        "-b",
        "8",
        "--exclude",
        "up_proj",
        "-o",
        &folder.text("new"),
    ]);
    assert!(report["tensors"].as_array().unwrap().iter().any(|t| t["name"] == name && t["action"] == "kept"));
}

#[test]
fn missing_shards_are_all_named() {
    let folder = Folder::new();
    sharded(&folder.path("model"), &llama(Float::BF16), &llama_config());
    for shard in 1..=2 {
        std::fs::remove_file(folder.path(&format!("model/model-0000{shard}-of-00002.safetensors"))).unwrap();
    }
    let text = refused(&["quantize", "-m", &folder.text("model")]);
    assert!(
        text.contains("model-00001-of-00002.safetensors")
            && text.contains("model-00002-of-00002.safetensors"),
        "{text}"
    );
}

#[test]
fn weights_that_are_not_finite_are_refused_or_kept() {
    for float in Float::ALL {
        let folder = Folder::new();
        let mut tensors = llama(float);
        let name = "model.layers.1.self_attn.o_proj.weight";
        let bytes = &mut tensors.get_mut(name).unwrap().2;
        for (index, value) in [(4000, f32::NAN), (3999, f32::NEG_INFINITY), (4095, f32::INFINITY)] {
            let mut encoded = Vec::new();
            float.encode(value, &mut encoded);
            bytes[index * float.size()..][..float.size()].copy_from_slice(&encoded);
        }
        directory(&folder.path("model"), &tensors, &llama_config());
        let (model, out) = (folder.text("model"), folder.text("out"));
        for device in ["cpu", "gpu"] {
            for recipe in [
                &["-b", "8"][..],
                &["-b", "4", "--group-size", "32", "--observer", "mse"],
                &["-b", "8", "--observer", "histogram"],
                &["-b", "8", "--strategy", "tensor", "--tile-bytes", "1000B"],
            ] {
                let text = refused(&[&["quantize", "-m", &model, "-o", &out, "-d", device], recipe].concat());
                assert!(
                    text.contains(name) && text.contains("3 values") && text.contains("index 3999"),
                    "{text}"
                );
                assert_eq!(names(folder.root()), ["model"]);
            }
        }
        let report = ok(&["quantize", "-m", &model, "-o", &out, "--on-nonfinite", "keep"]);
        let kept = report["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap();
        assert_eq!(kept["action"], "kept");
        assert!(
            kept["reason"].as_str().unwrap().contains("3 values are not finite, the first at index 3999")
        );
        assert!(load(&folder.path("out/model.safetensors"))[name].2 == tensors[name].2);
        let config = std::fs::read_to_string(folder.path("out/config.json")).unwrap();
        assert!(config.contains("model.layers.1.self_attn.o_proj"), "it must be on the ignore list");
    }
}

#[test]
fn a_cast_that_overflows_is_refused_or_saturates() {
    let folder = Folder::new();
    let mut tensors = llama(Float::F32);
    let name = "model.layers.0.mlp.gate_proj.weight";
    let bytes = &mut tensors.get_mut(name).unwrap().2;
    for (index, value) in [(7, 7e4f32), (9, -1e30), (11, 65519.9), (13, 65504.0)] {
        bytes[4 * index..][..4].copy_from_slice(&value.to_le_bytes());
    }
    directory(&folder.path("model"), &tensors, &llama_config());
    let (model, out) = (folder.text("model"), folder.text("out"));
    for device in ["cpu", "gpu"] {
        let text = refused(&["quantize", "-m", &model, "-b", "16", "-o", &out, "-d", device]);
        assert!(text.contains(name) && text.contains("2 values") && text.contains("--saturate"), "{text}");
        assert_eq!(names(folder.root()), ["model"]);
    }
    let report = ok(&["quantize", "-m", &model, "-b", "16", "-o", &out, "--saturate"]);
    assert!(report["warnings"].to_string().contains("2 values were clamped"));
    let cast = load(&folder.path("out/model.safetensors"));
    let at = |i: usize| Float::F16.decode(&cast[name].2[2 * i..]);
    assert_eq!([at(7), at(9), at(11), at(13)], [65504.0, -65504.0, 65504.0, 65504.0]);
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path("out/config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "float16");
    assert!(config.get("quantization_config").is_none());
}

#[test]
fn scales_that_overflow_are_refused() {
    let folder = Folder::new();
    let mut tensors = llama(Float::F32);
    let name = "model.layers.0.mlp.gate_proj.weight";
    let bytes = &mut tensors.get_mut(name).unwrap().2;
    bytes[..4].copy_from_slice(&3e38f32.to_le_bytes());
    bytes[4..8].copy_from_slice(&(-3e38f32).to_le_bytes());
    directory(&folder.path("model"), &tensors, &llama_config());
    let (model, out) = (folder.text("model"), folder.text("out"));
    let text = refused(&["quantize", "-m", &model, "-o", &out, "--scheme", "asymmetric"]);
    assert!(text.contains(name) && text.contains("overflows F32"), "{text}");
    ok(&["quantize", "-m", &model, "-o", &out]);
}

#[test]
fn nonsense_arguments_are_usage_errors() {
    let folder = Folder::new();
    let model = model(&folder);
    for (arguments, said) in [
        (&["--bits", "5"][..], "4, 8, 16"),
        (&["--preset", "w3a16"], "w4a16"),
        (&["--observer", "best"], "minmax"),
        (&["--group-size", "0"], "group-size"),
        (&["--group-size", "32", "--strategy", "channel"], "--strategy group"),
        (&["--include", "("], "regex"),
        (&["--layer-types", "linear,rnn"], "conv2d"),
        (&["--override", "x=bits=5"], "bits"),
        (&["--override", "x=colour=red"], "group-size"),
        (&["--max-memory", "1MiB"], "32MiB"),
        (&["--max-memory", "much"], "max-memory"),
        (&["--bits", "4", "--preset", "w4a16"], "cannot be used with"),
        (&["--bits", "16", "--group-size", "32"], "no meaning"),
        (&["--percentile", "300", "--observer", "percentile"], "50 to 100"),
        (&["--device", "no such adapter"], "llvmpipe"),
        (&["--bits", "4", "--strategy", "tensor"], "w8a8"),
        (&["--format", "gguf"], "compressed-tensors"),
    ] {
        let text = refused(&[&["quantize", "-m", &model, "-o", &folder.text("out")], arguments].concat());
        assert!(text.contains(said), "{arguments:?}: {text}");
    }
    assert!(!folder.path("out").exists());
    let text = refused(&["quantize"]);
    assert!(text.contains("--model"), "{text}");
    let missing = run(&["quantize", "-m", &folder.text("nothing")]);
    assert!(!missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains("nothing"));
}

#[test]
fn what_loaders_refuse_is_said_beforehand() {
    let folder = Folder::new();
    let model = model(&folder);
    for (arguments, said) in [
        (&["-b", "4", "--group-size", "64", "-s", "asymmetric"][..], "dequantize=True"),
        (&["-b", "8", "-s", "asymmetric"], "vLLM refuses asymmetric int8"),
        (&["-b", "8", "--group-size", "64"], "vLLM refuses w8a8 weights in groups"),
        (&["-b", "4", "--group-size", "16"], "32, 64 or 128"),
        (&["-b", "4", "--group-size", "64", "--override", "q_proj=bits=8"], "q_proj and"),
        (&["-b", "4", "--group-size", "16", "--format", "gptq"], "groups of 32, 64 or 128 weights only"),
        (&["-b", "4", "--group-size", "64", "--format", "awq", "--exclude", "q_proj"], "q_proj as one layer"),
        (&["-b", "8", "--exclude", "no such layer"], "matches no tensor"),
    ] {
        let output = run(&[&["quantize", "-m", &model, "--dry-run"], arguments].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains(said), "{arguments:?}: {text}");
    }
    assert_eq!(names(folder.root()), ["model"]);
}

#[test]
fn unknown_stacked_experts_are_kept_and_reported() {
    let folder = Folder::new();
    let mut tensors = llama(Float::BF16);
    tensors.insert("model.layers.0.mlp.experts.gate_up_proj".into(), weights(&[4, 64, 128], Float::BF16, 1));
    let mut config = llama_config();
    config["model_type"] = json!("made-up-moe");
    directory(&folder.path("model"), &tensors, &config);
    let report = ok(&["quantize", "-m", &folder.text("model"), "-o", &folder.text("out")]);
    let experts = report["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .find(|t| t["name"] == "model.layers.0.mlp.experts.gate_up_proj")
        .unwrap();
    assert_eq!(experts["action"], "kept");
    assert!(experts["reason"].as_str().unwrap().contains("made-up-moe"), "{experts}");
}

/// A sparse file of 4 TiB: its result would not fit, which is seen before a weight is read.
#[test]
fn too_little_disk_is_refused_beforehand() {
    use std::io::Write;
    let folder = Folder::new();
    let bytes: u64 = 4 << 40;
    let entry = json!({"dtype": "BF16", "shape": [bytes / 8192, 4096], "data_offsets": [0, bytes]});
    let header = json!({"model.layers.0.mlp.up_proj.weight": entry}).to_string();
    let mut file = std::fs::File::create(folder.path("sparse.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + bytes).unwrap();
    let text = refused(&["quantize", "-m", &folder.text("sparse.safetensors"), "-b", "8", "--dry-run"]);
    assert!(text.contains("too little disk") && text.contains("2.2 TB are needed"), "{text}");
    assert_eq!(names(folder.root()), ["sparse.safetensors"]);
}

#[test]
fn a_report_or_a_profile_never_replaces_weights() {
    let folder = Folder::new();
    let model = model(&folder);
    let out = folder.text("out");
    let weights = std::fs::read(folder.path("model/model.safetensors")).unwrap();
    std::fs::write(folder.path("mine.json"), "mine").unwrap();
    std::fs::create_dir(folder.path("folder")).unwrap();
    for (report, said) in [
        ("model/model.safetensors", "inside the input"),
        ("model/new.json", "inside the input"),
        ("out/model.safetensors", "inside the output"),
        ("out", "inside the output"),
        ("folder", "is a directory"),
        ("mine.json", "--force"),
    ] {
        for option in ["--report", "--profile"] {
            let text = refused(&["quantize", "-m", &model, "-o", &out, option, &folder.text(report)]);
            assert!(text.contains(option) && text.contains(said), "{option} {report}: {text}");
            assert_eq!(names(folder.root()), ["folder", "mine.json", "model"]);
        }
    }
    assert_eq!(std::fs::read(folder.path("model/model.safetensors")).unwrap(), weights);
    assert_eq!(std::fs::read(folder.path("mine.json")).unwrap(), b"mine");
    let new = folder.text("report.json");
    let text = refused(&["quantize", "-m", &model, "-o", &out, "--report", &new, "--profile", &new]);
    assert!(text.contains("name two") && !folder.path("report.json").exists(), "{text}");
    ok(&["quantize", "-m", &model, "-o", &out, "--report", &new]);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&new).unwrap()).unwrap();
    assert_eq!(report["tensors"].as_array().unwrap().len(), llama(Float::BF16).len());
}

#[test]
fn a_layer_that_lacks_a_piece_is_refused_by_every_reader() {
    let folder = Folder::new();
    let model = model(&folder);
    let coded = folder.text("coded");
    let name = "model.layers.0.mlp.up_proj.weight";
    for (recipe, piece, said) in [
        (&["-b", "8"][..], "_scale", "its scales ("),
        (&["-b", "4", "--group-size", "32"], "_packed", "its codes are missing"),
        (&["-b", "4", "--group-size", "32"], "_scale", "its scales ("),
        (&["-b", "4", "--group-size", "32", "-s", "asymmetric"], "_zero_point", "asymmetric"),
        (&["-b", "8", "-s", "asymmetric"], "_zero_point", "asymmetric"),
    ] {
        ok(&[&["quantize", "-m", &model, "-o", &coded, "-f"], recipe].concat());
        let path = folder.path("coded/model.safetensors");
        let mut tensors = load(&path);
        tensors.remove(&format!("{name}{piece}")).unwrap();
        save(&path, &tensors);
        let module = name.strip_suffix(".weight").unwrap();
        for arguments in
            [&["validate", &coded][..], &["dequantize", "-m", &coded, "-o", &folder.text("back")]]
        {
            let text = refused(arguments);
            let asymmetric = said == "asymmetric" && text.contains("symmetric false");
            assert!(
                text.contains(module) && (text.contains(said) || asymmetric),
                "{recipe:?} {arguments:?}: {text}"
            );
        }
        assert!(!folder.path("back").exists());
    }
}

#[test]
fn ranges_at_the_end_of_f32_are_refused_rather_than_coded_to_infinity() {
    let folder = Folder::new();
    let mut tensors = Tensors::new();
    let bytes: Vec<u8> =
        [3.4e38f32, -3.4e38].iter().cycle().take(64 * 8).flat_map(|v| v.to_le_bytes()).collect();
    tensors.insert("l.weight".into(), (safetensors::Dtype::F32, vec![8, 64], bytes));
    save(&folder.path("l.safetensors"), &tensors);
    for bits in ["4", "8"] {
        let text =
            refused(&["quantize", "-m", &folder.text("l.safetensors"), "-b", bits, "--group-size", "32"]);
        assert!(text.contains("l.weight") && text.contains("overflows F32"), "{text}");
    }
}

#[test]
fn models_without_a_common_tensor_are_not_called_equal() {
    let folder = Folder::new();
    let mut other = Tensors::new();
    other.insert("other.weight".into(), weights(&[8, 8], Float::F32, 1));
    save(&folder.path("a.safetensors"), &llama(Float::F32));
    save(&folder.path("b.safetensors"), &other);
    let text = refused(&["compare", &folder.text("a.safetensors"), &folder.text("b.safetensors")]);
    assert!(text.contains("no tensor in common"), "{text}");
}

#[test]
#[cfg(target_os = "linux")]
fn output_that_cannot_be_written_is_a_failure() {
    let folder = Folder::new();
    let model = model(&folder);
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let status = command(&["inspect", &model, "--json"]).stdout(full()).status().unwrap();
    assert_eq!(status.code(), Some(1));
}
