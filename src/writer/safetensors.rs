//! Layout of a safetensors file: the header and the place of every tensor, the same for equal inputs.

use std::cmp::Reverse;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::layout::{FileLayout, Placed};

/// Tensor data begin at a multiple of this, which suits memory-mapping readers and vector loads.
const ALIGNMENT: usize = 64;
/// Readers refuse longer headers.
const LONGEST_HEADER: usize = 100_000_000;

/// Works out header and places of a file.
///
/// Tensors lie in the order of the layout, in which they are written, so that the file is complete from its start on and
/// can be hashed while the rest is made. Where one would not be aligned to its elements, they all lie by element size,
/// largest first, then by name.
pub(super) fn place(layout: &FileLayout, lengths: &[u64]) -> Result<Placed, String> {
    let tensors = &layout.tensors;
    if tensors.iter().any(|t| t.name == "__metadata__") {
        return Err("tensor `__metadata__`: the name is taken".into());
    }
    if let Some(foreign) = tensors.iter().find(|t| !t.dtype.in_safetensors()) {
        return Err(format!("tensor `{}`: safetensors has no {}", foreign.name, foreign.dtype.torch_name()));
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    let size = |&i: &usize| tensors[i].dtype.size();
    let mut starts =
        lengths.iter().scan(0u64, |end, &length| Some(std::mem::replace(end, end.wrapping_add(length))));
    if !order.iter().all(|i| starts.next().is_some_and(|start| start.is_multiple_of(size(i) as u64))) {
        order.sort_by_key(|i| Reverse(size(i)));
        // names mostly come in order, which a sort of each size by itself can see
        for same in order.chunk_by_mut(|a, b| size(a) == size(b)) {
            same.sort_by(|&a, &b| tensors[a].name.cmp(&tensors[b].name));
        }
    }
    let mut spans = vec![(0, 0); lengths.len()];
    let mut end = 0u64;
    for &i in &order {
        spans[i] = (end, lengths[i]);
        end = end.checked_add(lengths[i]).ok_or("is too large")?;
    }
    let json =
        serde_json::to_vec(&Json { layout, order: &order, spans: &spans }).map_err(|e| e.to_string())?;
    let padded = (8 + json.len()).next_multiple_of(ALIGNMENT);
    if padded - 8 > LONGEST_HEADER {
        return Err(format!(
            "the header would take {} bytes; readers accept {LONGEST_HEADER}: use more shards",
            padded - 8
        ));
    }
    let mut header = Vec::with_capacity(padded);
    header.extend_from_slice(&(padded as u64 - 8).to_le_bytes());
    header.extend_from_slice(&json);
    header.resize(padded, b' ');
    let size = end.checked_add(padded as u64).ok_or("is too large")?;
    spans.iter_mut().for_each(|(start, _)| *start += padded as u64);
    Ok(Placed { fixed: vec![(0, header)], spans, size, archive: None })
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
