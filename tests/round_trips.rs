//! There and back: what quantize writes, dequantize, inspect, compare and validate read; nothing else of a directory is
//! lost.

mod common;

use common::*;
use monoquant::tensor::Float;
use serde_json::json;

/// Quantizes and dequantizes a directory; returns the comparison of the result with the original.
fn there_and_back(folder: &Folder, quantize: &[&str]) -> serde_json::Value {
    let [model, coded, back] = ["model", "coded", "back"].map(|n| folder.text(n));
    let report = ok(&[&["quantize", "-m", &model, "-o", &coded, "-f"], quantize].concat());
    let stored = load(&folder.path("model/model.safetensors"));
    assert_eq!(report["bytes_before"], stored.values().map(|(_, _, bytes)| bytes.len()).sum::<usize>());
    assert!(
        run(&["validate", &coded]).status.success(),
        "{}",
        String::from_utf8_lossy(&run(&["validate", &coded]).stdout)
    );
    ok(&["dequantize", "-m", &coded, "-o", &back, "-f"]);
    let direct = ok(&["compare", &model, &coded]);
    let back = ok(&["compare", &model, &back]);
    // codes decoded by compare are what dequantize writes, up to the rounding of the written dtype
    let (a, b) = (direct["sqnr_db"].as_f64().unwrap(), back["sqnr_db"].as_f64().unwrap());
    assert!(b <= a + 0.01 && b > a - 0.4, "{a} dB decoded, {b} dB written");
    back
}

fn shapes_are_those_of(folder: &Folder, original: &Tensors) {
    let back = load(&folder.path("back/model.safetensors"));
    let facts =
        |t: &Tensors| -> Vec<_> { t.iter().map(|(n, (d, s, _))| (n.clone(), *d, s.clone())).collect() };
    assert_eq!(facts(&back), facts(original));
}

#[test]
fn every_dtype_and_width_comes_back() {
    for float in Float::ALL {
        for (recipe, bound) in [
            (&["-b", "8"][..], 34.0),
            (&["-b", "8", "-s", "asymmetric"], 34.0),
            (&["-b", "8", "--strategy", "tensor"], 20.0),
            (&["--preset", "w8a16", "--group-size", "32", "-s", "asymmetric"], 38.0),
            (&["-b", "4", "--group-size", "32"], 17.0),
            (&["-b", "4", "--group-size", "32", "-s", "asymmetric"], 17.0),
            (&["-b", "4", "--strategy", "channel", "-s", "asymmetric"], 14.0),
        ] {
            let folder = Folder::new();
            let tensors = llama(float);
            directory(&folder.path("model"), &tensors, &llama_config());
            let comparison = there_and_back(&folder, recipe);
            shapes_are_those_of(&folder, &tensors);
            let quantized =
                comparison["differences"].as_array().unwrap().iter().filter(|d| d["sqnr_db"] != 999.0);
            let mut count = 0;
            for layer in quantized {
                assert!(layer["sqnr_db"].as_f64().unwrap() > bound, "{recipe:?} {layer}");
                count += 1;
            }
            assert_eq!(count, 14, "{recipe:?}");
            assert_eq!(
                names(&folder.path("back")),
                ["config.json", "extra", "model.safetensors", "tokenizer.json"]
            );
            assert_eq!(std::fs::read_to_string(folder.path("coded/extra/notes.txt")).unwrap(), "kept");
            let config = std::fs::read_to_string(folder.path("coded/config.json")).unwrap();
            let config: serde_json::Value = serde_json::from_str(&config).unwrap();
            let groups = &config["quantization_config"]["config_groups"];
            assert_eq!(groups["group_0"]["targets"], json!(["Linear"]), "one scheme is meant by class");
            let config = std::fs::read_to_string(folder.path("back/config.json")).unwrap();
            assert!(!config.contains("quantization_config"));
        }
    }
}

#[test]
fn conv1d_of_gpt2_is_quantized_per_output_and_put_back() {
    let folder = Folder::new();
    let mut tensors = Tensors::new();
    // columns (outputs) of very different sizes: per-input scales would lose the small ones
    let (dtype, shape, mut bytes) = weights(&[48, 96], Float::F32, 9);
    for (i, value) in bytes.chunks_exact_mut(4).enumerate() {
        let scaled = f32::from_le_bytes(value.try_into().unwrap()) * 2f32.powi(-((i % 96) as i32 / 8));
        value.copy_from_slice(&scaled.to_le_bytes());
    }
    tensors.insert("transformer.h.0.attn.c_attn.weight".into(), (dtype, shape, bytes));
    tensors.insert("transformer.h.0.attn.c_attn.bias".into(), weights(&[96], Float::F32, 1));
    tensors.insert("transformer.wte.weight".into(), weights(&[50, 48], Float::F32, 2));
    directory(&folder.path("model"), &tensors, &json!({"model_type": "gpt2", "vocab_size": 50}));
    for recipe in [&["-b", "8"][..], &["-b", "4", "--group-size", "16"], &["-b", "8", "--tile-bytes", "400B"]]
    {
        let comparison = there_and_back(&folder, recipe);
        shapes_are_those_of(&folder, &tensors);
        let coded = load(&folder.path("coded/model.safetensors"));
        let scale = &coded["transformer.h.0.attn.c_attn.weight_scale"];
        assert_eq!(scale.1[0], 96, "one row of scales an output");
        assert!(comparison["sqnr_db"].as_f64().unwrap() > 17.0, "{comparison}");
    }
}

#[test]
fn stacked_experts_are_split_and_put_back() {
    for (model_type, gate_up, down, extra) in [
        ("llama4_text", [4, 64, 96], [4, 48, 64], json!({})),
        ("gpt_oss", [4, 64, 96], [4, 48, 64], json!({})),
        ("qwen3_moe", [4, 96, 64], [4, 64, 48], json!({})),
    ] {
        let folder = Folder::new();
        let prefix = if model_type == "llama4_text" {
            "model.layers.0.feed_forward.experts"
        } else {
            "model.layers.0.mlp.experts"
        };
        let mut tensors = Tensors::new();
        tensors.insert(format!("{prefix}.gate_up_proj"), weights(&gate_up, Float::BF16, 1));
        tensors.insert(format!("{prefix}.down_proj"), weights(&down, Float::BF16, 2));
        if model_type == "gpt_oss" {
            tensors.insert(format!("{prefix}.gate_up_proj_bias"), weights(&[4, 96], Float::BF16, 3));
            tensors.insert(format!("{prefix}.down_proj_bias"), weights(&[4, 64], Float::BF16, 4));
        }
        let mut config =
            json!({"model_type": model_type, "hidden_size": 64, "num_local_experts": 4, "num_experts": 4});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        directory(&folder.path("model"), &tensors, &config);
        let comparison = there_and_back(&folder, &["-b", "8"]);
        shapes_are_those_of(&folder, &tensors);
        assert!(comparison["sqnr_db"].as_f64().unwrap() > 38.0, "{model_type}: {}", comparison["sqnr_db"]);
        let coded = load(&folder.path("coded/model.safetensors"));
        for name in ["0.gate_proj.weight", "3.up_proj.weight", "2.down_proj.weight"] {
            let shape = &coded[&format!("{prefix}.{name}")].1;
            let expected = if name.contains("down") { [64, 48] } else { [48, 64] };
            assert_eq!(shape, &expected, "{model_type} {name}");
        }
        for (name, tensor) in &tensors {
            if name.ends_with("bias") {
                assert!(load(&folder.path("back/model.safetensors"))[name] == *tensor, "{name}");
            }
        }
    }
}

#[test]
fn a_single_file_carries_its_own_recipe() {
    let folder = Folder::new();
    let mut tensors = Tensors::new();
    tensors.insert("conv.weight".into(), weights(&[8, 3, 3, 3], Float::F32, 1));
    tensors.insert("lstm.weight_ih_l0".into(), weights(&[64, 24], Float::F32, 2));
    tensors.insert("lstm.weight_hh_l0".into(), weights(&[64, 16], Float::F32, 3));
    tensors.insert("tiny.weight".into(), weights(&[6, 4], Float::F32, 4));
    tensors.insert("bn.num_batches_tracked".into(), (safetensors::Dtype::I64, vec![], vec![1; 8]));
    save(&folder.path("net.safetensors"), &tensors);
    let net = folder.text("net.safetensors");
    let types = ["--layer-types", "linear,conv2d,lstm"];
    for (recipe, suffix) in [
        (&["-b", "8"][..], "w8a8"),
        (&["--preset", "w8a16"], "w8a16"),
        (&["-b", "4", "--on-mismatch", "channel"], "w4a16"),
    ] {
        let report = ok(&[&["quantize", "-m", &net, "-f"], &types[..], recipe].concat());
        let out = folder.text(&format!("net-{suffix}.safetensors"));
        assert_eq!(report["output"], out.as_str());
        let coded = load(std::path::Path::new(&out));
        assert!(coded.contains_key("lstm.weight_ih_l0_scale"), "{:?}", coded.keys());
        assert_eq!(coded.contains_key("lstm.weight_ih_l0_packed"), suffix != "w8a8");
        let back = folder.text("back.safetensors");
        ok(&["dequantize", "-m", &out, "-o", &back, "-f", "--dtype", "f32"]);
        let back = load(std::path::Path::new(&back));
        let shapes =
            |t: &Tensors| -> Vec<_> { t.iter().map(|(n, (d, s, _))| (n.clone(), *d, s.clone())).collect() };
        assert_eq!(shapes(&back), shapes(&tensors));
        assert!(back["bn.num_batches_tracked"] == tensors["bn.num_batches_tracked"]);
        let inspected = ok(&["inspect", &out]);
        assert_eq!(inspected["recipe"]["preset"], suffix);
        assert!(run(&["validate", &out]).status.success());
    }
}

#[test]
fn casts_round_to_nearest_even() {
    let folder = Folder::new();
    let tensors = llama(Float::F32);
    directory(&folder.path("model"), &tensors, &llama_config());
    for (preset, float) in [("fp16", Float::F16), ("bf16", Float::BF16)] {
        ok(&["quantize", "-m", &folder.text("model"), "--preset", preset, "-o", &folder.text(preset)]);
        let cast = load(&folder.path(preset).join("model.safetensors"));
        for (name, (_, _, bytes)) in &tensors {
            let mut expected = Vec::new();
            for value in bytes.chunks_exact(4) {
                float.encode(f32::from_le_bytes(value.try_into().unwrap()), &mut expected);
            }
            assert!(cast[name].2 == expected, "{preset} {name}");
        }
    }
}

#[test]
fn validate_sees_what_is_broken() {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::BF16), &llama_config());
    let [model, coded] = ["model", "coded"].map(|n| folder.text(n));
    let spoil = |change: &dyn Fn(&mut Tensors)| {
        ok(&[
            "quantize",
            "-m",
            &model,
            "-o",
            &coded,
            "-f",
            "-b",
            "4",
            "--group-size",
            "32",
            "-s",
            "asymmetric",
        ]);
        let path = folder.path("coded/model.safetensors");
        let mut tensors = load(&path);
        change(&mut tensors);
        save(&path, &tensors);
        refused(&["validate", &coded])
    };
    let name = "model.layers.0.mlp.up_proj.weight";
    let text = spoil(&|t| {
        t.get_mut(&format!("{name}_scale")).unwrap().2[..2].copy_from_slice(&0x7fc0u16.to_le_bytes())
    });
    assert!(text.contains(name) && text.contains("not finite"), "{text}");
    let text = spoil(&|t| drop(t.remove(&format!("{name}_shape"))));
    assert!(text.contains("weight_shape"), "{text}");
    let text = spoil(&|t| drop(t.remove(&format!("{name}_scale"))));
    assert!(text.contains("its scales (model.layers.0.mlp.up_proj.weight_scale) are missing"), "{text}");
    let text =
        spoil(&|t| t.get_mut("model.norm.weight").unwrap().2[..2].copy_from_slice(&0x7f80u16.to_le_bytes()));
    assert!(text.contains("model.norm.weight"), "{text}");
    ok(&["quantize", "-m", &model, "-o", &coded, "-f", "-b", "8"]);
    let config = std::fs::read_to_string(folder.path("coded/config.json")).unwrap();
    std::fs::write(folder.path("coded/config.json"), config.replace("\"compressed\"", "\"frozen\"")).unwrap();
    let text = refused(&["validate", &coded]);
    assert!(text.contains("quantization_status is frozen"), "{text}");
}
