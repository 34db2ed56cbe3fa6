//! How the inputs of the table are made.

use crate::common::{Tensors, dtype, llama_config};
use monoquant::tensor::Float;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::{FileExt, symlink},
    path::Path,
    process::Command,
};

/// Makes something in a row's folder.
pub type Make = Box<dyn Fn(&Path) + Sync + Send>;

/// One after the other.
pub fn all(parts: impl IntoIterator<Item = Make>) -> Make {
    let parts: Vec<Make> = parts.into_iter().collect();
    Box::new(move |folder| parts.iter().for_each(|make| make(folder)))
}

/// Nothing.
pub fn nothing() -> Make {
    all([])
}

/// A file, in folders that are made as well.
pub fn file(name: &'static str, bytes: impl AsRef<[u8]>) -> Make {
    let bytes = bytes.as_ref().to_vec();
    Box::new(move |folder| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &bytes).unwrap();
    })
}

/// A file of such a length that begins with these bytes; the rest is a hole.
pub fn sparse(name: &'static str, length: u64, bytes: impl AsRef<[u8]>) -> Make {
    let bytes = bytes.as_ref().to_vec();
    Box::new(move |folder| {
        let file = fs::File::create(folder.join(name)).unwrap();
        file.set_len(length).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
    })
}

/// A directory.
pub fn directory(name: &'static str) -> Make {
    Box::new(move |folder| fs::create_dir_all(folder.join(name)).unwrap())
}

/// A symlink.
pub fn link(name: &'static str, target: &'static str) -> Make {
    Box::new(move |folder| symlink(target, folder.join(name)).unwrap())
}

/// Without a file or folder that was made before.
pub fn without(name: &'static str) -> Make {
    Box::new(move |folder| {
        let path = folder.join(name);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    })
}

/// A safetensors file of this header and so many bytes of data.
pub fn header(text: &str, data: usize) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &vec![0; data]].concat()
}

/// `x.safetensors` of this header.
pub fn headed(text: &str, data: usize) -> Make {
    file("x.safetensors", header(text, data))
}

/// A tensor of the values that `value` has at each index.
pub fn tensor(
    float: Float,
    shape: &[usize],
    value: impl Fn(usize) -> f32,
) -> (safetensors::Dtype, Vec<usize>, Vec<u8>) {
    let mut bytes = Vec::new();
    (0..shape.iter().product()).for_each(|i| float.encode(value(i), &mut bytes));
    (dtype(float), shape.to_vec(), bytes)
}

/// A safetensors file of these tensors.
pub fn tensors(name: &'static str, tensors: Tensors) -> Make {
    Box::new(move |folder| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        crate::common::save(&path, &tensors);
    })
}

/// `x.safetensors` with one Linear weight.
pub fn weight(float: Float, shape: &[usize], value: impl Fn(usize) -> f32) -> Make {
    tensors("x.safetensors", [("layer.weight".to_owned(), tensor(float, shape, value))].into())
}

/// Waves between −1 and 1: values like any other.
pub fn wave(i: usize) -> f32 {
    (i as f32 * 0.37).sin()
}

/// `x.safetensors` with 8 rows of 64 good weights.
pub fn sound() -> Make {
    weight(Float::F32, &[8, 64], wave)
}

/// The same weight as a directory `x` with a config.
pub fn model() -> Make {
    let weight = [("layer.weight".to_owned(), tensor(Float::F32, &[8, 64], wave))].into();
    all([tensors("x/model.safetensors", weight), file("x/config.json", r#"{"model_type": "llama"}"#)])
}

/// An index of weights.
pub fn index(map: Value) -> Make {
    file("x/model.safetensors.index.json", json!({"metadata": {}, "weight_map": map}).to_string())
}

/// The directory `x`, a Llama of one layer in int4 and groups of 64, of which the tensors and config.json were changed.
pub fn quantized(
    format: &'static str,
    change: impl Fn(&mut Tensors, &mut Value) + Sync + Send + 'static,
) -> Make {
    Box::new(move |folder| {
        let model = tempfile::tempdir().unwrap();
        let layer = ("model.layers.0.mlp.down_proj.weight".to_owned(), tensor(Float::F16, &[64, 192], wave));
        crate::common::directory(&model.path().join("model"), &[layer].into(), &llama_config());
        let mut command = Command::new(env!("CARGO_BIN_EXE_monoquant"));
        command.args([
            "quantize",
            "--bits",
            "4",
            "--group-size",
            "64",
            "--observer",
            "minmax",
            "--device",
            "cpu",
        ]);
        command
            .args(["--quiet", "--format", format, "-m"])
            .arg(model.path().join("model"))
            .arg("-o")
            .arg(folder.join("x"));
        assert!(command.output().unwrap().status.success());
        let (weights, config) = (folder.join("x/model.safetensors"), folder.join("x/config.json"));
        let mut tensors = crate::common::load(&weights);
        let mut value: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        change(&mut tensors, &mut value);
        crate::common::save(&weights, &tensors);
        fs::write(config, value.to_string()).unwrap();
    })
}

/// Braces in braces, deeper than any reader of JSON goes.
pub fn deep(key: &str) -> String {
    format!("{}{}", format!(r#"{{"{key}":"#).repeat(100_000), "}".repeat(100_000))
}
