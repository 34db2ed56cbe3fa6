//! What the end-to-end tests share: checkpoints made on the fly, and the command itself.
#![allow(dead_code)] // each test crate uses a part

use monoquant::{
    kernels::cases::{Random, data},
    tensor::Float,
};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A named tensor: dtype, shape, bytes.
pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

pub fn dtype(float: Float) -> Dtype {
    match float {
        Float::F32 => Dtype::F32,
        Float::F16 => Dtype::F16,
        Float::BF16 => Dtype::BF16,
    }
}

/// Gaussian weights with a few outliers.
pub fn weights(shape: &[usize], float: Float, seed: u64) -> (Dtype, Vec<usize>, Vec<u8>) {
    let count = shape.iter().product();
    let mut bytes = data("gaussian", count, float, seed);
    let mut random = Random(seed);
    for _ in 0..count / 500 {
        let i = random.next_u64() as usize % count;
        let mut value = Vec::new();
        float.encode(random.gaussian() * 0.2, &mut value);
        bytes[i * float.size()..][..float.size()].copy_from_slice(&value);
    }
    (dtype(float), shape.to_vec(), bytes)
}

pub fn save(path: &Path, tensors: &Tensors) {
    let views: BTreeMap<&str, TensorView> = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        })
        .collect();
    safetensors::serialize_to_file(views, None, path).unwrap();
}

pub fn load(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = |(name, v): (String, TensorView)| (name, (v.dtype(), v.shape().to_vec(), v.data().to_vec()));
    file.tensors().into_iter().map(view).collect()
}

/// The tensors of a small Llama: two layers, hidden 64, rows of 64 and 192 weights.
pub fn llama(float: Float) -> Tensors {
    let mut tensors = Tensors::new();
    let mut add = |name: &str, shape: &[usize]| {
        let seed = tensors.len() as u64;
        tensors.insert(name.to_owned(), weights(shape, float, seed));
    };
    add("model.embed_tokens.weight", &[96, 64]);
    add("lm_head.weight", &[96, 64]);
    add("model.norm.weight", &[64]);
    for layer in 0..2 {
        for (name, shape) in [
            ("self_attn.q_proj.weight", [64, 64]),
            ("self_attn.k_proj.weight", [32, 64]),
            ("self_attn.v_proj.weight", [32, 64]),
            ("self_attn.o_proj.weight", [64, 64]),
            ("mlp.gate_proj.weight", [192, 64]),
            ("mlp.up_proj.weight", [192, 64]),
            ("mlp.down_proj.weight", [64, 192]),
        ] {
            add(&format!("model.layers.{layer}.{name}"), &shape);
        }
        add(&format!("model.layers.{layer}.input_layernorm.weight"), &[64]);
    }
    tensors
}

pub fn llama_config() -> Value {
    json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "vocab_size": 96,
           "torch_dtype": "bfloat16", "tie_word_embeddings": false})
}

/// A model directory with a tokenizer and a file in a folder beside the weights.
pub fn directory(path: &Path, tensors: &Tensors, config: &Value) {
    std::fs::create_dir_all(path.join("extra")).unwrap();
    save(&path.join("model.safetensors"), tensors);
    std::fs::write(path.join("config.json"), config.to_string()).unwrap();
    std::fs::write(path.join("tokenizer.json"), "{}").unwrap();
    std::fs::write(path.join("extra/notes.txt"), "kept").unwrap();
}

/// Splits tensors over two shards with an index.
pub fn sharded(path: &Path, tensors: &Tensors, config: &Value) {
    std::fs::create_dir_all(path).unwrap();
    let mut shards = [Tensors::new(), Tensors::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        shards[i % 2].insert(name.clone(), tensor.clone());
        map.insert(name.clone(), format!("model-0000{}-of-00002.safetensors", i % 2 + 1).into());
    }
    for (i, shard) in shards.iter().enumerate() {
        save(&path.join(format!("model-0000{}-of-00002.safetensors", i + 1)), shard);
    }
    let index = json!({"metadata": {}, "weight_map": map});
    std::fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::write(path.join("config.json"), config.to_string()).unwrap();
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_monoquant"));
    command.args(arguments).env("MONOQUANT_CACHE_DIR", "").env_remove("RUST_LOG");
    command
}

pub fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// Runs the command and returns its report.
pub fn ok(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}"))
}

/// Runs the command, which must refuse with exit code 2, and returns what it says.
pub fn refused(arguments: &[&str]) -> String {
    let output = run(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// Names in a folder, hidden ones too.
pub fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }
}
