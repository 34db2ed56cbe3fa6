//! What a plan refuses, in words.

use super::builder::Stored;
use crate::tensor::TensorInfo;
use serde_json::Value;
use std::collections::HashSet;

pub(super) fn mismatch(name: &str, row: usize, group_size: usize) -> String {
    let sizes: Vec<String> =
        [256, 128, 64, 32, 16, 8].iter().filter(|&&s| row.is_multiple_of(s)).map(usize::to_string).collect();
    let sizes = if sizes.is_empty() {
        "no power of two from 8 on does".into()
    } else {
        format!("{} do", sizes.join(", "))
    };
    format!(
        "{name}: groups of {group_size} do not divide its rows of {row} weights; {sizes} \
         (--group-size, or --on-mismatch shrink|channel|keep)"
    )
}

/// Whether a checkpoint holds codes already, and how that shows.
pub(super) fn already_quantized(tensors: &[TensorInfo], config: Option<&Value>) -> Vec<String> {
    let hint = "monoquant dequantize makes floats of what it can read";
    if let Some(entry) = config.and_then(|c| c.get("quantization_config")).filter(|c| !c.is_null()) {
        let method = entry.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        return vec![format!(
            "the checkpoint is already quantized: config.json has a quantization_config ({method}); {hint}"
        )];
    }
    let suffixes =
        ["_packed", ".qweight", ".weight_scale", ".SCB", ".weight_scale_inv", ".qzeros", "_blocks"];
    let quantized = |t: &&TensorInfo| {
        suffixes.iter().any(|s| t.name.ends_with(s))
            || (t.name.ends_with(".weight") && t.shape.len() == 2 && t.dtype.size() == 1)
    };
    match tensors.iter().find(quantized) {
        Some(t) => vec![format!(
            "{}: the checkpoint is already quantized ({} of shape {:?}); {hint}",
            t.name, t.dtype, t.shape
        )],
        None => Vec::new(),
    }
}

pub(super) fn duplicates(stored: &[Stored]) -> Vec<String> {
    let mut seen = HashSet::with_capacity(stored.iter().map(|s| s.parts.len()).sum());
    let names = stored.iter().flat_map(|s| s.parts.iter().map(|p| (p.folder, p.info.name.as_str())));
    names
        .filter(|name| !seen.insert(*name))
        .map(|(_, name)| format!("{name}: two tensors of the output would have this name"))
        .collect()
}
