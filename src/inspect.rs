//! What is in a checkpoint: layers, dtypes, schemes, sizes.

use crate::{
    coded::{CodedLayer, layers},
    error::Result,
    plan::Layout,
    quantize::infos,
    reader::Checkpoint,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path};

/// One tensor, or one quantized layer with all its parts.
#[derive(Debug, Clone, Serialize)]
pub struct Item {
    /// Name of the weight.
    pub name: String,
    /// "int4 symmetric, group 128, scales F16", or the dtype.
    pub kind: String,
    /// Shape of the weight.
    pub shape: Vec<usize>,
    /// Bytes of all parts.
    pub bytes: u64,
    /// Of a quantized layer, what a program needs to run it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Value>,
}

/// A checkpoint's contents.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The path.
    pub model: String,
    /// Files of tensors.
    pub files: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Weights in quantized layers and in float tensors.
    pub parameters: u64,
    /// Number of tensors or layers, and bytes, by kind.
    pub kinds: BTreeMap<String, (usize, u64)>,
    /// In reading order.
    pub items: Vec<Item>,
    /// Why the layers could not be made out, if so; items are then plain tensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// Which part of a file was read, and what was left.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What monoquant noted in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Value>,
}

/// "int4 symmetric, group 128, scales F16".
pub fn describe(layer: &CodedLayer) -> String {
    let kind = if layer.symmetric { "symmetric" } else { "asymmetric" };
    let layout = match layer.coded.layout {
        Layout::Packed => "",
        Layout::Int8 => " unpacked",
        Layout::Gptq { .. } => " GPTQ",
        Layout::Awq => " AWQ",
    };
    format!(
        "int{}{layout} {kind}, {}, scales {}",
        layer.coded.bits,
        layer.strategy,
        layer.coded.scales.1.dtype()
    )
}

/// Reads headers, and the shapes of packed layers.
pub fn inspect(model: &Path) -> Result<Inspection> {
    inspect_checkpoint(&Checkpoint::open(model)?)
}

/// Looks at headers, and the shapes of packed layers.
pub fn inspect_checkpoint(checkpoint: &Checkpoint) -> Result<Inspection> {
    let tensors = infos(checkpoint);
    let (found, unreadable) = match layers(checkpoint, &checkpoint.source()?) {
        Ok(found) => (Some(found), None),
        Err(e) => (None, Some(e.to_string())),
    };
    let mut items: Vec<(usize, Item)> = Vec::new();
    let mut parameters = 0;
    let mut in_layer = std::collections::HashSet::new();
    for layer in found.iter().flat_map(|f| &f.coded) {
        let bytes = layer.parts.iter().map(|&i| tensors[i].bytes()).sum();
        parameters += layer.shape.iter().map(|&d| d as u64).product::<u64>();
        in_layer.extend(layer.parts.iter().copied());
        let item = Item {
            name: layer.name.clone(),
            kind: describe(layer),
            shape: layer.shape.clone(),
            bytes,
            scheme: Some(json!({
                "bits": layer.coded.bits,
                "symmetric": layer.symmetric,
                "layout": match layer.coded.layout {
                    Layout::Gptq { .. } => "gptq",
                    Layout::Awq => "awq",
                    Layout::Packed | Layout::Int8 => "compressed-tensors",
                },
                "activations": if layer.coded.packed() { "float" } else { "dynamic-token" },
            })),
        };
        items.push((layer.codes, item));
    }
    for layer in found.iter().flat_map(|f| &f.blocks) {
        parameters += layer.elements();
        in_layer.insert(layer.tensor);
        let item = Item {
            name: layer.name.clone(),
            kind: layer.block.to_string(),
            shape: layer.shape.clone(),
            bytes: tensors[layer.tensor].bytes(),
            scheme: None,
        };
        items.push((layer.tensor, item));
    }
    for (i, info) in tensors.iter().enumerate().filter(|(i, _)| !in_layer.contains(i)) {
        if info.dtype.is_float() {
            parameters += info.elements();
        }
        let item = Item {
            name: info.name.clone(),
            kind: info.dtype.to_string(),
            shape: info.shape.clone(),
            bytes: info.bytes(),
            scheme: None,
        };
        items.push((i, item));
    }
    items.sort_by_key(|(i, _)| *i);
    let items: Vec<Item> = items.into_iter().map(|(_, item)| item).collect();
    let mut kinds: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for item in &items {
        let entry = kinds.entry(item.kind.clone()).or_default();
        entry.0 += 1;
        entry.1 += item.bytes;
    }
    let ours = checkpoint.metadata().get("monoquant");
    let recipe =
        ours.and_then(|text| serde_json::from_str::<Value>(text).ok()).and_then(|v| v.get("recipe").cloned());
    let mut notes = checkpoint.notes().to_vec();
    notes.extend(checkpoint.gguf().map(|keys| {
        let architecture = keys.text("general.architecture").unwrap_or("an unknown model");
        format!("GGUF of {architecture}, {} key-values", keys.len())
    }));
    notes.extend(checkpoint.tied().iter().map(|(other, name)| format!("{other} is the same as {name}")));
    Ok(Inspection {
        notes,
        model: checkpoint.path().display().to_string(),
        files: checkpoint.files().len(),
        bytes: tensors.iter().map(|t| t.bytes()).sum(),
        parameters,
        kinds,
        items,
        unreadable,
        recipe,
    })
}
