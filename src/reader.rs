//! Checkpoints in: what tensors there are, where their bytes lie, and what else belongs to the model.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::block::Block;
use crate::error::{Error, Result};
use crate::tensor::TensorInfo;

mod dims;
pub(crate) mod directory;
pub mod gguf;
pub(crate) mod handles;
pub(crate) mod json;
pub mod memory;
mod naming;
mod pickle;
mod safetensors;
mod source;
mod stamps;
pub(crate) mod strided;
#[cfg(test)]
mod tests;
mod torch;

use naming::{enumerate, enumerate_some, prefer_listed};

pub use source::Source;
pub use stamps::{Stamp, Stamps};

/// What [`Checkpoint::open`] accepts, for messages.
const ACCEPTED: &str = "accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a \
                        directory with one, or with the index of several";
/// Names that a message shows of many.
const SHOWN: usize = 8;

/// The headers of a model's weight files, and what lies beside them.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    is_directory: bool,
    files: Vec<PathBuf>,
    /// Instead of files, what holds tensors in memory.
    blobs: Vec<memory::Blob>,
    tensors: Vec<StoredTensor>,
    config: Option<serde_json::Value>,
    metadata: BTreeMap<String, String>,
    tied: BTreeMap<String, String>,
    notes: Vec<String>,
    companions: Vec<PathBuf>,
    left_out: Vec<(PathBuf, String)>,
    gguf: Option<gguf::Keys>,
    stamps: Stamps,
}

/// A tensor and the place of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Name, dtype and shape.
    pub info: TensorInfo,
    /// Index in [`Checkpoint::files`].
    pub file: usize,
    /// Offset of the first byte from the start of that file.
    pub start: u64,
    /// Distances of neighbours along each dimension, in elements, if the tensor is not contiguous.
    pub strides: Option<Vec<u64>>,
    /// The type of its blocks, if it is a quantized one of GGUF. It then counts bytes: its dtype is U8, and the last
    /// dimension the bytes of a row.
    pub block: Option<Block>,
}

impl StoredTensor {
    /// The dimensions in weights.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = self.info.shape.clone();
        if let (Some(block), Some(row)) = (self.block, shape.last_mut()) {
            *row = *row / block.bytes() * block.len();
        }
        shape
    }
}

/// What the header of one file says, whatever its format.
#[derive(Debug, Default)]
struct Header {
    /// Tensors with the absolute offset of their first element, and strides.
    tensors: Vec<(TensorInfo, u64, Option<Vec<u64>>)>,
    /// Names of tensors that are another one.
    tied: BTreeMap<String, String>,
    metadata: BTreeMap<String, String>,
    /// What was taken from where, and what was left.
    notes: Vec<String>,
    /// By name, the tensors of blocks.
    blocks: HashMap<String, Block>,
    /// Of a GGUF file.
    gguf: Option<gguf::Keys>,
}

impl Checkpoint {
    /// Opens a `.safetensors` file, a checkpoint of torch, or the directory of a model. Reads headers, no weights.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let kind = match fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::Usage(format!(
                    "{}: no such file or directory; {ACCEPTED}",
                    path.display()
                )));
            }
            kind => kind.map_err(Error::io("open", path))?,
        };
        if kind.is_dir() {
            let listing = directory::list(path)?;
            let mut stamps = Stamps::default();
            // before anything is read of them
            listing.files.keys().try_for_each(|file| stamps.add(&path.join(file)))?;
            let weights = directory::weights(path, &listing)?;
            return Self::open_directory(path, listing, weights, stamps);
        }
        if !kind.is_file() {
            return Err(Error::format(path, format!("is neither a file nor a directory; {ACCEPTED}")));
        }
        let mut checkpoint = Self::empty(path, false);
        checkpoint.stamps.add(path)?;
        let header = read_header(path)?;
        match header.gguf.as_ref().and_then(gguf::split) {
            Some(split) => checkpoint.add_shards(gguf::shards(path, split)?)?,
            None => checkpoint.take(path.to_owned(), header, None)?,
        }
        if checkpoint.gguf.is_some() {
            return Ok(checkpoint);
        }
        checkpoint.unwrap_names();
        let beside = path.with_file_name("config.json");
        if beside.is_file() {
            checkpoint.stamps.add(&beside)?;
            // The file may belong to something else, so it is no error if it is not a model's.
            match read_config(&beside) {
                Ok(config) => checkpoint.config = Some(config),
                Err(e) => checkpoint.left_out.push(("config.json".into(), e.to_string())),
            }
        }
        Ok(checkpoint)
    }

    fn open_directory(
        path: &Path,
        listing: directory::Listing,
        weights: directory::Weights,
        stamps: Stamps,
    ) -> Result<Checkpoint> {
        let mut checkpoint = Self { stamps, ..Self::empty(path, true) };
        if weights.gguf {
            checkpoint.add_shards(weights.files.iter().map(|file| path.join(file)).collect())?;
        } else {
            for file in &weights.files {
                let listed = weights.listed.as_ref().map(|l| (l.index.as_path(), &l.tensors[file]));
                let file = path.join(file);
                let header = read_header(&file)?;
                checkpoint.take(file, header, listed)?;
            }
            checkpoint.check_names()?;
            checkpoint.unwrap_names();
        }
        for (file, kind) in listing.files {
            let index = weights.listed.as_ref().is_some_and(|l| l.index == path.join(&file));
            if weights.files.contains(&file) || index || file == Path::new("config.json") {
                continue;
            }
            match kind {
                directory::Kind::Companion => checkpoint.companions.push(file),
                kind => {
                    checkpoint.stamps.forget(&path.join(&file));
                    checkpoint.left_out.push((file, kind.reason()));
                }
            }
        }
        checkpoint.left_out.extend(listing.skipped);
        checkpoint.left_out.sort();
        if checkpoint.gguf.is_some() {
            return Ok(checkpoint);
        }
        let config = path.join("config.json");
        // `exists` would take a file that may not be read for one that is not there.
        if config.symlink_metadata().is_ok() {
            checkpoint.config = Some(read_config(&config)?);
        }
        Ok(checkpoint)
    }

    fn empty(path: &Path, is_directory: bool) -> Self {
        Checkpoint {
            path: path.to_owned(),
            is_directory,
            files: Vec::new(),
            blobs: Vec::new(),
            tensors: Vec::new(),
            config: None,
            metadata: BTreeMap::new(),
            tied: BTreeMap::new(),
            notes: Vec::new(),
            companions: Vec::new(),
            left_out: Vec::new(),
            gguf: None,
            stamps: Stamps::default(),
        }
    }

    /// Takes up the tensors of a file: all, or those that the index names.
    fn take(
        &mut self,
        path: PathBuf,
        mut header: Header,
        listed: Option<(&Path, &HashSet<String>)>,
    ) -> Result<()> {
        // Tensors may share a storage, so that together they may be larger than any file.
        let mut sizes = header.tensors.iter().map(|(info, ..)| info.bytes());
        let before: u64 = self.tensors.iter().map(|t| t.info.bytes()).sum();
        if sizes.try_fold(before, u64::checked_add).is_none() {
            return Err(Error::format(&path, "holds tensors of more bytes than 64 bits can count"));
        }
        if let Some((_, names)) = listed {
            prefer_listed(&mut header, names);
        }
        let (mut kept, mut others) = (Vec::new(), Vec::new());
        for (info, start, strides) in header.tensors {
            match listed {
                Some((_, names)) if !names.contains(&info.name) => others.push(info.name),
                _ => {
                    let block = header.blocks.remove(&info.name);
                    kept.push(StoredTensor { info, file: self.files.len(), start, strides, block });
                }
            }
        }
        header.tied.retain(|name, _| listed.is_none_or(|(_, names)| names.contains(name)));
        if let Some((index, names)) = listed
            && kept.len() + header.tied.len() < names.len()
        {
            let tied = header.tied.keys().map(String::as_str);
            let found: HashSet<&str> = kept.iter().map(|t| t.info.name.as_str()).chain(tied).collect();
            let mut missing: Vec<&str> =
                names.iter().map(String::as_str).filter(|n| !found.contains(n)).collect();
            missing.sort_unstable();
            return Err(Error::format(
                &path,
                format!("lacks what {} promises to be there: {}", index.display(), enumerate(&missing)),
            ));
        }
        if !others.is_empty() {
            let file = path.strip_prefix(&self.path).unwrap_or(&path).to_owned();
            self.left_out
                .push((file, format!("tensors that the index does not list: {}", enumerate(&others))));
        }
        for (key, value) in header.metadata {
            self.metadata.entry(key).or_insert(value);
        }
        self.tied.extend(header.tied);
        // what all shards have in common is said by the first
        self.gguf = self.gguf.take().or(header.gguf);
        for note in header.notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        self.tensors.extend(kept);
        self.files.push(path);
        Ok(())
    }

    /// The path as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the input is a directory rather than a single file.
    pub fn is_directory(&self) -> bool {
        self.is_directory
    }

    /// The tensors, ordered by file, and by place or, of GGUF, as the file lists them.
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    /// `config.json` of the directory, or the one beside the file, if there is one.
    pub fn config(&self) -> Option<&serde_json::Value> {
        self.config.as_ref()
    }

    /// The key-values of a GGUF model; of a split one, those of the first shard.
    pub fn gguf(&self) -> Option<&gguf::Keys> {
        self.gguf.as_ref()
    }

    /// The `__metadata__` of all files; where they differ, that of the first counts.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Names of weights that are another one, or share its data: other name → its name.
    pub fn tied(&self) -> &BTreeMap<String, String> {
        &self.tied
    }

    /// What a reader should know: which part of a file was taken, what was left.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Every other file of the directory (tokenizer, generation config, …), relative to it and sorted.
    pub fn companions(&self) -> &[PathBuf] {
        &self.companions
    }

    /// What is neither read nor a companion, relative to the directory, and why.
    pub fn left_out(&self) -> &[(PathBuf, String)] {
        &self.left_out
    }

    /// The weight files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// What every file that belongs to it was like before it was read. A checkpoint in memory has none.
    pub fn stamps(&self) -> &Stamps {
        &self.stamps
    }

    /// Opens the files for reading weights.
    pub fn source(&self) -> Result<Source> {
        Source::open(self)
    }
}

/// Reads what a file says about itself. The name decides about safetensors, the content about all else.
fn read_header(path: &Path) -> Result<Header> {
    let file = fs::File::open(path).map_err(Error::io("open", path))?;
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    let mut start = vec![0; size.min(512) as usize];
    handles::read_at(&file, 0, &mut start).map_err(Error::io("read", path))?;
    // no safetensors file begins so: its header would take more than a gigabyte
    if start.starts_with(gguf::MAGIC) {
        return gguf::read_header(path, &file, size);
    }
    if has_extension(path, "safetensors") {
        return safetensors::read_header(path);
    }
    // before torch's old stream, whose first byte may be one of the length in front of the header
    if start.get(7..9) == Some(b"\0{") {
        return safetensors::read_header(path);
    }
    if torch::is_torch(&start) {
        return torch::read(path, &file, size, &start);
    }
    let what = if start.is_empty() { "is empty" } else { "begins like no checkpoint that is read" };
    Err(Error::format(path, format!("{what}; {ACCEPTED}")))
}

fn read_config(path: &Path) -> Result<serde_json::Value> {
    match json::read(path)? {
        config @ serde_json::Value::Object(_) => Ok(config),
        _ => Err(Error::format(path, "is not a JSON object")),
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().and_then(OsStr::to_str).is_some_and(|e| e.eq_ignore_ascii_case(extension))
}
