//! Layout of a GGUF file: key-values, then tensors in the order of the layout, as llama.cpp insists on it.

use super::layout::{FileLayout, Placed};
use crate::reader::gguf::{RECIPE, alignment, number_of};

/// Works out header and places of a file.
pub(super) fn place(layout: &FileLayout, lengths: &[u64]) -> Result<Placed, String> {
    let Some(keys) = &layout.gguf else {
        return Err("a GGUF file needs key-values, and there are none".into());
    };
    let mut keys = (**keys).clone();
    match layout.metadata.get("monoquant") {
        Some(recipe) => keys.set_text(RECIPE, recipe),
        None => keys.remove(RECIPE),
    }
    let alignment = alignment(&keys)?;
    let mut head = b"GGUF".to_vec();
    head.extend_from_slice(&3u32.to_le_bytes());
    head.extend_from_slice(&(layout.tensors.len() as u64).to_le_bytes());
    head.extend_from_slice(&(keys.len() as u64).to_le_bytes());
    keys.write(&mut head);
    let mut end = 0u64;
    let mut spans = Vec::with_capacity(lengths.len());
    for (info, &length) in layout.tensors.iter().zip(lengths) {
        let wrong = |what: &str| format!("tensor `{}`: {what}", info.name);
        let mut dims: Vec<u64> = info.shape.iter().rev().map(|&d| d as u64).collect();
        let kind = match layout.blocks.get(&info.name) {
            Some(block) => {
                let row = dims.first_mut().ok_or_else(|| wrong("blocks need a dimension"))?;
                *row = *row / block.bytes() as u64 * block.len() as u64;
                block.gguf_type()
            }
            None => number_of(info.dtype).ok_or_else(|| wrong(&format!("GGUF has no {}", info.dtype)))?,
        };
        if dims.len() > 4 {
            return Err(wrong(&format!("it has {} dimensions; GGUF holds up to 4", dims.len())));
        }
        head.extend_from_slice(&(info.name.len() as u64).to_le_bytes());
        head.extend_from_slice(info.name.as_bytes());
        head.extend_from_slice(&(dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| head.extend_from_slice(&d.to_le_bytes()));
        head.extend_from_slice(&kind.to_le_bytes());
        head.extend_from_slice(&end.to_le_bytes());
        spans.push((end, length));
        let next = end.checked_add(length).and_then(|n| n.checked_next_multiple_of(alignment));
        end = next.ok_or("is too large")?;
    }
    let start = (head.len() as u64).checked_next_multiple_of(alignment).ok_or("is too large")?;
    let size = start.checked_add(end).ok_or("is too large")?;
    spans.iter_mut().for_each(|(at, _)| *at += start);
    // what lies between tensors is zero, as the file was given its size
    Ok(Placed { fixed: vec![(0, head)], spans, size, archive: None })
}
