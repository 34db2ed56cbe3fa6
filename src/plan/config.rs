//! What the new config.json says.

use super::Row;
use crate::{
    formats::Quantized,
    recipe::{Layer, LayerType, Reason},
    tensor::Float,
};
use serde_json::Value;

pub(crate) fn quantized(layer: &Layer) -> Quantized {
    let linear = layer.layer_type == LayerType::Linear;
    // a recurrent layer has several weights; each is named whole
    let recurrent = matches!(layer.layer_type, LayerType::Lstm | LayerType::Gru);
    let target = if recurrent { layer.name.clone() } else { layer.module.clone() };
    Quantized { target, scheme: layer.scheme, linear }
}

/// Modules of matrices that stay as they are: loaders must not expect them quantized.
pub(crate) fn kept_modules(rows: &[Row], heads: Vec<String>) -> Vec<String> {
    let embedding = Reason::Embedding.to_string();
    let mut kept: Vec<String> = rows
        .iter()
        .filter(|r| r.scheme.is_none() && r.shape.len() >= 2 && r.reason.as_ref() != Some(&embedding))
        .filter_map(|r| r.name.strip_suffix(".weight").map(str::to_owned))
        .collect();
    kept.extend(heads);
    kept
}

/// Sets the dtype where a config states one, in nested configs too.
pub(crate) fn set_dtype(config: &mut Value, to: Float) {
    fn visit(value: &mut Value, name: &str) -> bool {
        let Value::Object(map) = value else { return false };
        let mut found = false;
        for (key, entry) in map.iter_mut() {
            if matches!(key.as_str(), "dtype" | "torch_dtype") && (entry.is_string() || entry.is_null()) {
                *entry = name.into();
                found = true;
            } else if key.ends_with("_config") && key != "quantization_config" {
                visit(entry, name);
            }
        }
        found
    }
    if !visit(config, to.torch_name()) && config.is_object() {
        config["dtype"] = to.torch_name().into();
    }
}
