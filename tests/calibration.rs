//! `--calibration`: static scales of inputs, from statistics to the file and its config.

mod common;

use common::*;
use monoquant::{
    calibration::{ActivationObserver, Calibration, ObserverKind},
    tensor::Float,
};
use safetensors::Dtype;
use std::collections::BTreeMap;

/// Statistics of every Linear of a layer but its last.
fn statistics(symmetric: bool) -> (Calibration, BTreeMap<String, (f32, i32)>) {
    let names = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|n| format!("model.layers.0.self_attn.{n}"));
    let mut layers = BTreeMap::new();
    let mut expected = BTreeMap::new();
    for (i, name) in names.into_iter().enumerate() {
        let mut observer = ActivationObserver::new(ObserverKind::MinMax, None).unwrap();
        let values: Vec<f32> = (0..100).map(|v| (v as f32 - 20.0) * 0.01 * (i + 1) as f32).collect();
        observer.observe(&values, &[10, 10]).unwrap();
        let qparams = observer.qparams(8, symmetric, true, false).unwrap();
        expected.insert(name.clone(), (qparams.scales[0], qparams.zero_points[0]));
        layers.insert(name, observer);
    }
    (Calibration::new(symmetric, layers), expected)
}

#[test]
fn static_scales_are_stored_and_described() {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::F32), &llama_config());
    let [model, out, file] = ["model", "out", "statistics.json"].map(|n| folder.text(n));
    for symmetric in [true, false] {
        let (statistics, expected) = statistics(symmetric);
        std::fs::write(&file, statistics.to_json()).unwrap();
        let report = ok(&["quantize", "-m", &model, "-b", "8", "-o", &out, "-f", "--calibration", &file]);
        let stored = load(&folder.path("out/model.safetensors"));
        for (module, (scale, zero_point)) in &expected {
            let (dtype, shape, bytes) = &stored[&format!("{module}.input_scale")];
            assert_eq!(
                (*dtype, shape.as_slice(), bytes.as_slice()),
                (Dtype::F32, &[1][..], &scale.to_le_bytes()[..])
            );
            let zero = stored.get(&format!("{module}.input_zero_point"));
            assert_eq!(
                zero.map(|(dtype, _, bytes)| (*dtype, i32::from(bytes[0] as i8))),
                (!symmetric).then_some((Dtype::I8, *zero_point))
            );
        }
        // what was never seen stays as it is, and is listed
        let untouched = report["tensors"].as_array().unwrap().iter();
        let reasons: Vec<&str> = untouched
            .filter(|t| t["name"] == "model.layers.1.mlp.up_proj.weight")
            .map(|t| t["reason"].as_str().unwrap())
            .collect();
        assert_eq!(reasons, ["not reached by calibration"]);
        let config: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.path("out/config.json")).unwrap()).unwrap();
        let inputs = &config["quantization_config"]["config_groups"]["group_0"]["input_activations"];
        assert_eq!(
            (&inputs["strategy"], &inputs["dynamic"], &inputs["symmetric"]),
            (&"tensor".into(), &false.into(), &symmetric.into())
        );
        ok(&["dequantize", "-m", &out, "-o", &folder.text("floats"), "-f"]);
        assert!(
            !load(&folder.path("floats/model.safetensors"))
                .keys()
                .any(|name| name.contains("input_scale") || name.contains("input_zero"))
        );
    }
}

#[test]
fn statistics_that_are_none_are_refused() {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::F32), &llama_config());
    let [model, out, file] = ["model", "out", "s.json"].map(|n| folder.text(n));
    let says = |text: &str, options: &[&str], what: &str| {
        std::fs::write(&file, text).unwrap();
        let base = ["quantize", "-m", &model, "-o", &out, "--calibration", &file];
        let said = refused(&[&base, options].concat());
        assert!(said.contains(what), "{said}");
        assert!(!folder.path("out").exists());
    };
    let good = statistics(true).0.to_json();
    says(&good, &["-b", "4"], "--calibration is for inputs of 8 bits");
    says("{}", &["-b", "8"], "holds no statistics of monoquant calibrate");
    says("{\"monoquant_calibration\": 7}", &["-b", "8"], "version 7");
    says(&good[..good.len() / 2], &["-b", "8"], "s.json");
    says(&good.replace("\"samples\"", "\"other\""), &["-b", "8"], "damaged statistics");
    let empty = Calibration::new(true, BTreeMap::new()).to_json();
    says(&empty, &["-b", "8"], "no layer is left to quantize");
}
