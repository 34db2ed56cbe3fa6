//! Layout of a safetensors file: the header and the place of every tensor, the same for equal inputs.

use std::collections::{BTreeMap, HashSet};
use std::path::{Component, Path};

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::error::{Error, Result};
use crate::tensor::TensorInfo;

/// Tensor data begin at a multiple of this, which suits memory-mapping readers and vector loads.
const ALIGNMENT: usize = 64;
/// Readers refuse longer headers.
const LONGEST_HEADER: usize = 100_000_000;

/// What a file is to hold. Tensors may come in any order and are numbered in that order.
///
/// In the file they lie by element size, largest first, then by name, so that every one is aligned to its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLayout {
    /// File name, e.g. `model-00001-of-00002.safetensors`. A single output file takes the name of its destination.
    pub name: String,
    /// The tensors.
    pub tensors: Vec<TensorInfo>,
    /// The `__metadata__` of the header.
    pub metadata: BTreeMap<String, String>,
}

/// A layout worked out.
#[derive(Debug)]
pub(super) struct Placed {
    /// Length field, JSON and padding.
    pub header: Vec<u8>,
    /// Absolute offset and byte length of every tensor, in the order of [`FileLayout::tensors`].
    pub spans: Vec<(u64, u64)>,
    /// Bytes of the whole file.
    pub size: u64,
}

impl FileLayout {
    /// The bytes before the tensor data: length field, JSON, and spaces up to a multiple of 64 bytes.
    pub fn header(&self) -> Result<Vec<u8>> {
        Ok(self.place()?.header)
    }

    /// Absolute offset of every tensor's first byte, in the order of [`FileLayout::tensors`].
    pub fn offsets(&self) -> Result<Vec<u64>> {
        Ok(self.place()?.spans.into_iter().map(|(start, _)| start).collect())
    }

    /// Absolute offset of one tensor's first byte; `None` if there is no such tensor or the layout is not valid.
    ///
    /// Works out the whole layout: for many tensors, call [`FileLayout::offsets`] once.
    pub fn offset(&self, tensor: usize) -> Option<u64> {
        self.place().ok()?.spans.get(tensor).map(|(start, _)| *start)
    }

    /// Bytes of the whole file.
    pub fn size(&self) -> Result<u64> {
        Ok(self.place()?.size)
    }

    pub(super) fn place(&self) -> Result<Placed> {
        let wrong = |what: String| Error::format(&self.name, what);
        let mut parts = Path::new(&self.name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(wrong("is not the name of a file".into()));
        }
        let mut names = HashSet::new();
        let mut lengths = Vec::with_capacity(self.tensors.len());
        for t in &self.tensors {
            if t.name == "__metadata__" || !names.insert(&t.name) {
                return Err(wrong(format!("tensor `{}`: the name is taken", t.name)));
            }
            let elements = t.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
            let bytes = elements.and_then(|n| n.checked_mul(t.dtype.size() as u64));
            lengths.push(bytes.ok_or_else(|| wrong(format!("tensor `{}` is too large", t.name)))?);
        }

        let mut order: Vec<usize> = (0..self.tensors.len()).collect();
        order.sort_by(|&a, &b| {
            let (a, b) = (&self.tensors[a], &self.tensors[b]);
            b.dtype.size().cmp(&a.dtype.size()).then_with(|| a.name.cmp(&b.name))
        });
        let mut spans = vec![(0, 0); lengths.len()];
        let mut end = 0u64;
        for &i in &order {
            spans[i] = (end, lengths[i]);
            end = end.checked_add(lengths[i]).ok_or_else(|| wrong("is too large".into()))?;
        }

        let json = serde_json::to_vec(&Json { layout: self, order: &order, spans: &spans })
            .map_err(|e| wrong(e.to_string()))?;
        let padded = (8 + json.len()).next_multiple_of(ALIGNMENT);
        if padded - 8 > LONGEST_HEADER {
            return Err(wrong(format!(
                "the header would take {} bytes; readers accept {LONGEST_HEADER}: use more shards",
                padded - 8
            )));
        }
        let mut header = Vec::with_capacity(padded);
        header.extend_from_slice(&(padded as u64 - 8).to_le_bytes());
        header.extend_from_slice(&json);
        header.resize(padded, b' ');
        let size = end.checked_add(padded as u64).ok_or_else(|| wrong("is too large".into()))?;
        spans.iter_mut().for_each(|(start, _)| *start += padded as u64);
        Ok(Placed { header, spans, size })
    }
}

/// The header, written in the order given here whatever features serde_json was built with.
struct Json<'a> {
    layout: &'a FileLayout,
    order: &'a [usize],
    spans: &'a [(u64, u64)],
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry<'a> {
            dtype: &'a str,
            shape: &'a [usize],
            data_offsets: [u64; 2],
        }

        let mut map = serializer.serialize_map(None)?;
        if !self.layout.metadata.is_empty() {
            map.serialize_entry("__metadata__", &self.layout.metadata)?;
        }
        for &i in self.order {
            let t = &self.layout.tensors[i];
            let (start, length) = self.spans[i];
            let data_offsets = [start, start + length];
            let entry = Entry { dtype: t.dtype.name(), shape: &t.shape, data_offsets };
            map.serialize_entry(&t.name, &entry)?;
        }
        map.end()
    }
}
