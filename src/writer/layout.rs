//! Where every byte of an output file goes, the same for equal inputs.

use std::collections::{BTreeMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::torch::Archive;
use super::{gguf, safetensors, torch};
use crate::block::Block;
use crate::error::{Error, Result};
use crate::reader::gguf::Keys;
use crate::tensor::TensorInfo;

/// What holds the tensors of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Container {
    /// The safetensors format.
    #[default]
    Safetensors,
    /// The zip archive that `torch.save` writes, with a state dict.
    Torch,
    /// The GGUF format, of which only models of the same format can become files.
    Gguf,
}

/// What a file is to hold. Tensors may come in any order and are numbered in that order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileLayout {
    /// Folder within an output directory, if it has several.
    pub folder: String,
    /// File name, e.g. `model-00001-of-00002.safetensors`. A single output file takes the name of its destination.
    pub name: String,
    /// The format.
    pub container: Container,
    /// The tensors.
    pub tensors: Vec<TensorInfo>,
    /// More names of tensors, where the container allows it: name and number of the tensor.
    pub aliases: Vec<(String, usize)>,
    /// The `__metadata__` of the header; in files of torch, attributes of the state dict.
    pub metadata: BTreeMap<String, String>,
    /// Key-values of a GGUF file.
    pub gguf: Option<Arc<Keys>>,
    /// Tensors of GGUF blocks, whose dtype is U8 and whose last dimension counts bytes.
    pub blocks: BTreeMap<String, Block>,
}

/// A layout worked out.
#[derive(Debug)]
pub(super) struct Placed {
    /// What is known before a tensor is written: offset and bytes.
    pub fixed: Vec<(u64, Vec<u8>)>,
    /// Absolute offset and byte length of every tensor, in the order of [`FileLayout::tensors`].
    pub spans: Vec<(u64, u64)>,
    /// Bytes of the whole file.
    pub size: u64,
    /// What closes an archive once all tensors are written.
    pub archive: Option<Archive>,
}

impl FileLayout {
    /// Its path within an output directory.
    pub fn path(&self) -> PathBuf {
        Path::new(&self.folder).join(&self.name)
    }

    /// Absolute offset of every tensor's first byte, in the order of [`FileLayout::tensors`].
    pub fn offsets(&self) -> Result<Vec<u64>> {
        Ok(self.place()?.spans.into_iter().map(|(start, _)| start).collect())
    }

    /// Bytes of the whole file.
    pub fn size(&self) -> Result<u64> {
        Ok(self.place()?.size)
    }

    pub(super) fn place(&self) -> Result<Placed> {
        let wrong = |what: String| Error::format(&self.name, what);
        let is_name = |name: &str| {
            let mut parts = Path::new(name).components();
            matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
        };
        if !is_name(&self.name) || !(self.folder.is_empty() || is_name(&self.folder)) {
            return Err(wrong("is not the name of a file".into()));
        }
        let mut names = HashSet::with_capacity(self.tensors.len() + self.aliases.len());
        let mut lengths = Vec::with_capacity(self.tensors.len());
        let aliases = self.aliases.iter().map(|(name, _)| name);
        if let Some(twice) = self.tensors.iter().map(|t| &t.name).chain(aliases).find(|n| !names.insert(*n)) {
            return Err(wrong(format!("tensor `{twice}`: the name is taken")));
        }
        for t in &self.tensors {
            let elements = t.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
            let bytes = elements.and_then(|n| n.checked_mul(t.dtype.size() as u64));
            lengths.push(bytes.ok_or_else(|| wrong(format!("tensor `{}` is too large", t.name)))?);
        }
        match self.container {
            Container::Safetensors => safetensors::place(self, &lengths).map_err(wrong),
            Container::Gguf => gguf::place(self, &lengths).map_err(wrong),
            Container::Torch => self.archive().map_err(wrong),
        }
    }

    fn archive(&self) -> std::result::Result<Placed, String> {
        let tensors = self.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i));
        let entries: Vec<(String, usize)> = tensors.chain(self.aliases.iter().cloned()).collect();
        let mut attributes = self.metadata.clone();
        // says of safetensors files for which framework they are
        attributes.remove("format");
        let mut archive = torch::place("archive", &self.tensors, &entries, &attributes)?;
        let (fixed, spans) = (std::mem::take(&mut archive.fixed), archive.spans.clone());
        Ok(Placed { fixed, spans, size: archive.size, archive: Some(archive) })
    }
}
