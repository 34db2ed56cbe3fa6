//! GPTQ and AWQ checkpoints that are not what they should be: each gets a message that names what is wrong.

mod common;

use common::*;
use monoquant::tensor::Float;
use safetensors::Dtype;
use serde_json::{Value, json};

const MODULE: &str = "model.layers.0.mlp.down_proj";

/// A quantized model, changed.
fn damaged(format: &str, change: impl Fn(&mut Tensors, &mut Value)) -> String {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::F16), &llama_config());
    let [model, coded, out] = ["model", "coded", "out"].map(|n| folder.text(n));
    ok(&["quantize", "-m", &model, "-o", &coded, "--format", format, "-b", "4", "--group-size", "64"]);
    let mut tensors = load(&folder.path("coded/model.safetensors"));
    let config = folder.path("coded/config.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    change(&mut tensors, &mut value);
    save(&folder.path("coded/model.safetensors"), &tensors);
    std::fs::write(config, value.to_string()).unwrap();
    let validated = run(&["validate", &coded]);
    assert_eq!(validated.status.code(), Some(2), "validate finds nothing wrong");
    let text = refused(&["dequantize", "-m", &coded, "-o", &out]);
    let other = if format == "gptq" { "awq" } else { "gptq" };
    refused(&["convert", "-m", &coded, "--format", other, "-o", &out]);
    assert!(!folder.path("out").exists());
    // inspect shows what there is, compare says what is wrong
    assert!(run(&["inspect", &coded]).status.success());
    assert!(!run(&["compare", &coded, &coded]).status.success() || text.contains("config.json"), "{text}");
    text
}

fn part<'a>(tensors: &'a mut Tensors, name: &str) -> &'a mut (Dtype, Vec<usize>, Vec<u8>) {
    tensors.get_mut(&format!("{MODULE}.{name}")).unwrap()
}

#[test]
fn parts_that_are_missing_or_of_the_wrong_kind() {
    let case = |change: fn(&mut Tensors), says: &str| {
        for format in ["gptq", "awq"] {
            let text = damaged(format, |tensors, _| change(tensors));
            assert!(text.contains(MODULE) && text.contains(says), "{format}: {text}");
        }
    };
    case(|t| drop(t.remove(&format!("{MODULE}.qzeros"))), "down_proj.qzeros is missing");
    case(|t| drop(t.remove(&format!("{MODULE}.scales"))), "down_proj.scales is missing");
    case(|t| drop(t.remove(&format!("{MODULE}.qweight"))), "down_proj.qweight is missing");
    case(|t| part(t, "qweight").0 = Dtype::F32, "down_proj.qweight is F32; accepted: I32");
    case(|t| part(t, "scales").0 = Dtype::I16, "down_proj.scales is I16; accepted: F16, BF16, F32");
    case(|t| part(t, "qzeros").1.reverse(), "fit neither GPTQ");
    case(|t| part(t, "scales").1.reverse(), "fit neither GPTQ");
    case(|t| part(t, "qweight").1.reverse(), "fit neither GPTQ");
    case(
        |t| part(t, "qweight").1 = vec![1, 1, 1536],
        "down_proj.qweight has shape [1, 1, 1536]; a matrix is accepted",
    );
    case(|t| *part(t, "scales") = (Dtype::F16, vec![0, 64], vec![]), "a matrix is accepted");
    case(|t| part(t, "scales").2[0..2].copy_from_slice(&[0, 0x7c]), "scale 0 is not finite");
}

#[test]
fn zero_points_and_groups_that_cannot_be_read() {
    let text = damaged("gptq", |t, _| part(t, "qzeros").2[0] = 0x7f);
    assert!(text.contains("down_proj.qzeros: zero point 0 overflows, and loaders disagree"), "{text}");
    let text = damaged("gptq", |t, _| part(t, "g_idx").2.reverse());
    assert!(text.contains("g_idx: input 0 belongs to group") && text.contains("desc_act"), "{text}");
    let text = damaged("gptq", |t, _| part(t, "g_idx").2.chunks_exact_mut(4).for_each(|c| c[0] ^= 1));
    assert!(text.contains("g_idx: input 0 belongs to group 1, so the groups are reordered"), "{text}");
    let text = damaged("gptq", |t, _| part(t, "g_idx").1 = vec![2, 96]);
    assert!(text.contains("g_idx: I32 of shape [2, 96]; accepted: I32 of shape [192]"), "{text}");
}

#[test]
fn weights_beside_codes_and_reordered_groups_without_an_index() {
    for format in ["gptq", "awq", "compressed-tensors"] {
        let text = damaged(format, |t, _| {
            t.insert(format!("{MODULE}.weight"), weights(&[64, 192], Float::F16, 1));
        });
        assert!(text.contains("down_proj.weight: there is a weight (F16) beside its codes"), "{text}");
    }
    let text = damaged("gptq", |t, config| {
        t.remove(&format!("{MODULE}.g_idx"));
        config["quantization_config"]["desc_act"] = true.into();
    });
    assert!(text.contains("down_proj.g_idx, which says how, is missing"), "{text}");
    let text = damaged("gptq", |t, _| drop(t.remove(&format!("{MODULE}.qweight"))));
    assert!(
        text.lines().count() == 1 && text.contains("qweight is missing"),
        "one problem is said once: {text}"
    );
}

#[test]
fn configs_that_say_something_else() {
    let case = |format: &str, key: &str, value: Value, says: &str| {
        let text = damaged(format, |_, config| config["quantization_config"][key] = value.clone());
        assert!(text.contains(says), "{key}: {text}");
    };
    case("gptq", "quant_method", json!("awq"), "has the shapes of gptq, but config.json says awq");
    case("awq", "quant_method", json!("gptq"), "has the shapes of awq, but config.json says gptq");
    case("gptq", "quant_method", json!("aqlm"), "quantized by aqlm; accepted: compressed-tensors, gptq, awq");
    case("awq", "version", json!("gemv"), "AWQ version gemv; accepted: gemm");
    case("gptq", "checkpoint_format", json!("marlin"), "checkpoint_format marlin; accepted: gptq, gptq_v2");
    case("gptq", "bits", json!(8), "says 8 bits and groups of 64; model.layers.0.mlp.down_proj is int4");
    case(
        "awq",
        "group_size",
        json!(32),
        "says 4 bits and groups of 32; model.layers.0.mlp.down_proj is int4",
    );
    case("gptq", "group_size", json!(-1), "says 4 bits and groups of -1");
    let out = json!({"-:.*down_proj": {}});
    case("gptq", "dynamic", out, "down_proj is quantized, but '-:.*down_proj' in dynamic leaves it out");
    let out = json!(["down_proj"]);
    case(
        "awq",
        "modules_to_not_convert",
        out,
        "down_proj is quantized, but 'down_proj' in modules_to_not_convert",
    );
}

#[test]
fn version_2_of_gptq_is_read() {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::F16), &llama_config());
    let [model, coded, back] = ["model", "coded", "back"].map(|n| folder.text(n));
    ok(&["quantize", "-m", &model, "-o", &coded, "--format", "gptq", "-b", "4", "--group-size", "64"]);
    ok(&["dequantize", "-m", &coded, "-o", &back]);
    let mut tensors = load(&folder.path("coded/model.safetensors"));
    // asymmetric, as only the second version can say it: 0 in the first place
    for (name, (.., bytes)) in &mut tensors {
        if name.ends_with("qzeros") {
            assert!(bytes.iter().all(|&b| b == 0x77));
            bytes.fill(0x88);
            bytes[0] = 0x80;
        }
    }
    save(&folder.path("coded/model.safetensors"), &tensors);
    let config = folder.path("coded/config.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    value["quantization_config"]["checkpoint_format"] = "gptq_v2".into();
    value["quantization_config"]["sym"] = false.into();
    std::fs::write(config, value.to_string()).unwrap();
    let again = folder.text("again");
    ok(&["dequantize", "-m", &coded, "-o", &again]);
    let (a, b) =
        (load(&folder.path("back/model.safetensors")), load(&folder.path("again/model.safetensors")));
    let name = format!("{MODULE}.weight");
    let [a, b] = [&a[&name].2, &b[&name].2]
        .map(|v| v.chunks_exact(2).map(|x| Float::F16.decode(x)).collect::<Vec<_>>());
    let scale = Float::F16.decode(&tensors[&format!("{MODULE}.scales")].2);
    let half = |x: f32| {
        let mut bytes = Vec::new();
        Float::F16.encode(x, &mut bytes);
        Float::F16.decode(&bytes)
    };
    for i in 0..a.len() {
        // the zero point of output 0, group 0 fell by 8
        let expected = if i < 64 { (a[i] / scale).round().mul_add(scale, 8.0 * scale) } else { a[i] };
        assert_eq!(b[i], half(expected), "{i}");
    }
}
