//! A model's directory: which files hold its weights, which go along, and which are left out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::gguf::shard_name;
use super::json::{self, Unique};
use super::{ACCEPTED, has_extension};
use crate::error::{Error, Result};

/// Extensions of files that hold weights. Those not read are not copied either: they would be the unquantized model.
const WEIGHTS: [&str; 13] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "gguf",
    "ggml",
    "h5",
    "msgpack",
    "onnx",
    "onnx_data",
    "ot",
    "tflite",
];
/// Extensions of torch's files; the first is that of an index.
pub(crate) const TORCH: [&str; 4] = ["bin", "pt", "pth", "ckpt"];
/// Names, up to a digit or an extension, of what a training run keeps beside its weights.
const TRAINING: [&str; 6] =
    ["training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states"];
/// Directories of tools, not of the model.
const TOOLS: [&str; 5] = [".git", ".cache", ".huggingface", ".ipynb_checkpoints", "__pycache__"];

/// The files of a directory, relative to it.
#[derive(Debug)]
pub(super) struct Listing {
    /// Every file.
    pub files: BTreeMap<PathBuf, Kind>,
    /// What is no file or was not entered, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// What a file is by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A safetensors file.
    Safetensors,
    /// A file of torch.
    Torch,
    /// State of a training run, in a file of torch.
    Training,
    /// A GGUF file.
    Gguf,
    /// Weights in another format.
    OtherWeights,
    /// The index of weight files.
    Index,
    /// Anything else.
    Companion,
}

impl Kind {
    fn of(path: &Path) -> Self {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or("").to_ascii_lowercase();
        if has_extension(path, "safetensors") {
            Kind::Safetensors
        } else if TORCH.iter().any(|e| has_extension(path, e)) {
            let stem = name.split(['.', '-']).next().unwrap_or("");
            let stem = stem.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_');
            if TRAINING.contains(&stem) { Kind::Training } else { Kind::Torch }
        } else if has_extension(path, "gguf") {
            Kind::Gguf
        } else if WEIGHTS.iter().any(|e| has_extension(path, e)) {
            Kind::OtherWeights
        } else if WEIGHTS.iter().any(|e| name.ends_with(&format!(".{e}.index.json"))) {
            Kind::Index
        } else {
            Kind::Companion
        }
    }

    /// Why a file of this kind is left out.
    pub fn reason(self) -> String {
        match self {
            Kind::Safetensors | Kind::Torch | Kind::Gguf => {
                "weights that are not part of this checkpoint".into()
            }
            Kind::Training => "state of a training run".into(),
            Kind::OtherWeights => "weights in a format that is not read".into(),
            Kind::Index => "index of weights that are not read".into(),
            Kind::Companion => "not part of the model".into(),
        }
    }
}

/// The weight files of a directory, relative to it.
#[derive(Debug)]
pub(super) struct Weights {
    pub files: Vec<PathBuf>,
    pub listed: Option<Listed>,
    /// Whether they are one GGUF model.
    pub gguf: bool,
}

/// What an index says.
#[derive(Debug)]
pub(super) struct Listed {
    /// Path of the index.
    pub index: PathBuf,
    /// Tensors by file.
    pub tensors: HashMap<PathBuf, HashSet<String>>,
}

/// Lists all files under a directory. Follows symlinks, as caches of model hubs consist of them.
pub(super) fn list(root: &Path) -> Result<Listing> {
    let mut listing = Listing { files: BTreeMap::new(), skipped: Vec::new() };
    let real = fs::canonicalize(root).map_err(Error::io("open", root))?;
    // Every real directory is entered once, so that links cannot lead in circles.
    let mut entered = HashSet::from([real.clone()]);
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        let path = root.join(&directory);
        let entries = fs::read_dir(&path).map_err(Error::io("list", &path))?;
        let names: std::io::Result<BTreeSet<_>> = entries.map(|entry| entry.map(|e| e.file_name())).collect();
        for name in names.map_err(Error::io("list", &path))? {
            let relative = directory.join(&name);
            let path = root.join(&relative);
            let mut skip = |why: &str| listing.skipped.push((relative.clone(), why.to_owned()));
            let kind = match fs::metadata(&path) {
                Ok(kind) => kind,
                Err(e) if path.is_symlink() => {
                    skip(&format!("symlink that leads nowhere: {e}"));
                    continue;
                }
                Err(e) => return Err(Error::io("read", &path)(e)),
            };
            let text = name.to_string_lossy();
            if text.starts_with('.') && text.contains(".monoquant-") {
                skip("left over from an interrupted run of monoquant");
            } else if TOOLS.iter().any(|tool| text == *tool) {
                skip("not part of the model");
            } else if kind.is_file() {
                listing.files.insert(relative.clone(), Kind::of(&relative));
            } else if !kind.is_dir() {
                skip("neither a file nor a directory");
            } else {
                let target = fs::canonicalize(&path).map_err(Error::io("open", &path))?;
                if real.starts_with(&target) || !entered.insert(target) {
                    skip("link to a directory that is listed already, or above");
                } else {
                    pending.push(relative);
                }
            }
        }
    }
    Ok(listing)
}

/// Finds the weight files: those of the index, else `model.safetensors`, else every safetensors file; then the same
/// among torch's; then the one model of GGUF.
pub(super) fn weights(root: &Path, listing: &Listing) -> Result<Weights> {
    let top = |kind| {
        let found = listing.files.iter().filter(move |(_, k)| **k == kind);
        found.map(|(path, _)| path).filter(|path| path.components().count() == 1)
    };
    let alone = |files: Vec<PathBuf>| Ok(Weights { files, listed: None, gguf: false });
    if let Some(index) = index(root, top(Kind::Index), &["safetensors"], "model")? {
        return read_index(root, index, &["safetensors"]);
    }
    let single = PathBuf::from("model.safetensors");
    let files: Vec<PathBuf> = match listing.files.contains_key(&single) {
        true => vec![single],
        false => top(Kind::Safetensors).cloned().collect(),
    };
    if !files.is_empty() {
        return alone(files);
    }
    if let Some(index) = index(root, top(Kind::Index), &TORCH, "pytorch_model")? {
        return read_index(root, index, &TORCH);
    }
    let files: Vec<PathBuf> = top(Kind::Torch).cloned().collect();
    let usual =
        ["pytorch_model", "model"].iter().flat_map(|stem| TORCH.map(|e| format!("{stem}.{e}").into()));
    if let Some(single) = usual.into_iter().find(|name| files.contains(name)) {
        return alone(vec![single]);
    }
    match files.as_slice() {
        [] => gguf(root, listing, top(Kind::Gguf).cloned().collect()),
        [_] => alone(files),
        several if several.iter().all(|file| shard(file).is_some() && shard(file) == shard(&several[0])) => {
            alone(files)
        }
        several => {
            let names: Vec<String> = several.iter().map(|p| p.display().to_string()).collect();
            let what = format!(
                "has several files of torch: {}; name the one that is meant",
                super::enumerate(&names)
            );
            Err(Error::format(root, what))
        }
    }
}

/// The GGUF file of a directory, or all shards of one model.
fn gguf(root: &Path, listing: &Listing, files: Vec<PathBuf>) -> Result<Weights> {
    let model = |file: &Path| shard_name(file).map(|(name, _, count)| (name.to_owned(), count));
    let Some((first, others)) = files.split_first() else { return Err(no_weights(root, listing)) };
    let same = model(first).is_some() && others.iter().all(|file| model(file) == model(first));
    if !others.is_empty() && !same {
        let names: Vec<String> = files.iter().map(|p| p.display().to_string()).collect();
        let what =
            format!("has several GGUF models: {}; name the one that is meant", super::enumerate(&names));
        return Err(Error::format(root, what));
    }
    Ok(Weights { files, listed: None, gguf: true })
}

/// `NAME` and the number of shards of `NAME-00001-of-00002.bin`.
fn shard(file: &Path) -> Option<(&str, &str)> {
    let (name, count) = file.file_stem()?.to_str()?.rsplit_once("-of-")?;
    let (name, number) = name.rsplit_once('-')?;
    [number, count].iter().all(|n| n.bytes().all(|b| b.is_ascii_digit())).then_some((name, count))
}

/// The index of files with one of these extensions.
fn index<'a>(
    root: &Path,
    indexes: impl Iterator<Item = &'a PathBuf>,
    extensions: &[&str],
    preferred: &str,
) -> Result<Option<&'a PathBuf>> {
    let suffixes: Vec<String> = extensions.iter().map(|e| format!(".{e}.index.json")).collect();
    let of_these = |path: &&PathBuf| {
        let name = path.to_string_lossy().to_ascii_lowercase();
        suffixes.iter().any(|suffix| name.ends_with(suffix))
    };
    let found: Vec<&PathBuf> = indexes.filter(of_these).collect();
    let preferred = format!("{preferred}{}", suffixes[0]);
    match found.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(only)),
        several => match several.iter().find(|path| path.to_str() == Some(&preferred)) {
            Some(path) => Ok(Some(path)),
            None => {
                let names: Vec<_> = several.iter().map(|p| p.display().to_string()).collect();
                let what =
                    format!("has several indexes: {}; accepted: one, or {preferred}", names.join(", "));
                Err(Error::format(root, what))
            }
        },
    }
}

fn no_weights(root: &Path, listing: &Listing) -> Error {
    use Kind::*;
    let others: Vec<String> = listing
        .files
        .iter()
        .filter(|(_, kind)| matches!(kind, OtherWeights | Safetensors | Torch | Training | Gguf))
        .map(|(path, _)| path.display().to_string())
        .collect();
    let dangling = listing
        .skipped
        .iter()
        .filter(|(p, _)| has_extension(p, "safetensors") || TORCH.iter().any(|e| has_extension(p, e)));
    let dangling: Vec<String> = dangling.map(|(p, why)| format!("{} is a {why}", p.display())).collect();
    Error::format(
        root,
        match (dangling.is_empty(), others.is_empty()) {
            (false, _) => format!("has no weights: {}; {ACCEPTED}", dangling.join("; ")),
            (_, true) => format!("has no weights; {ACCEPTED}"),
            (_, false) => {
                format!("has no weights that are read, only {}; {ACCEPTED}", super::enumerate(&others))
            }
        },
    )
}

fn read_index(root: &Path, name: &Path, extensions: &[&str]) -> Result<Weights> {
    #[derive(Deserialize)]
    #[serde(expecting = "an object with `weight_map`")]
    struct Index {
        weight_map: Unique<String>,
    }

    let index = root.join(name);
    let Index { weight_map: Unique(map) } = json::read(&index)?;
    if map.is_empty() {
        return Err(Error::format(&index, "`weight_map` lists no tensors"));
    }
    let mut tensors: HashMap<PathBuf, HashSet<String>> = HashMap::new();
    for (tensor, file) in map {
        let path = PathBuf::from(&file);
        let inside = path.components().all(|c| matches!(c, Component::Normal(_)));
        if file.is_empty() || !inside {
            return Err(Error::format(
                &index,
                format!("tensor `{tensor}` is said to lie in `{file}`; accepted: a file in the directory"),
            ));
        }
        if !extensions.iter().any(|e| has_extension(&path, e)) {
            let what =
                format!("tensor `{tensor}` is said to lie in `{file}`, which is no .{} file", extensions[0]);
            return Err(Error::format(&index, what));
        }
        tensors.entry(path).or_default().insert(tensor);
    }
    let mut files: Vec<PathBuf> = tensors.keys().cloned().collect();
    files.sort();
    let missing: Vec<String> = files
        .iter()
        .filter(|file| !root.join(file).is_file())
        .map(|file| file.display().to_string())
        .collect();
    if !missing.is_empty() {
        return Err(Error::format(
            &index,
            format!(
                "{} of {} files are missing: {}; download them again",
                missing.len(),
                files.len(),
                missing.join(", ")
            ),
        ));
    }
    Ok(Weights { files, listed: Some(Listed { index, tensors }), gguf: false })
}
