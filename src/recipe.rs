//! Recipes: which tensors are quantized, and how.

use crate::{
    calibration::Calibration,
    error::{Error, Result},
    scheme::{Method, Preset},
};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub use crate::{
    choice::{Choice, Layer, Part, Reason},
    layers::{choose, unmatched},
    overrides::Override,
};

/// A kind of layer that can be quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerType {
    /// Fully connected: attention projections, MLPs, experts.
    Linear,
    /// 1-D convolution; its matrix is `[out, in·k]`.
    Conv1d,
    /// 2-D convolution; its matrix is `[out, in·kh·kw]`.
    Conv2d,
    /// Transposed convolution of 1 or 2 dimensions; its matrix is `[in, out·kh·kw]`: a scale belongs to an input.
    ConvTranspose,
    /// The input, hidden and projection matrices of LSTMs.
    Lstm,
    /// The input and hidden matrices of GRUs.
    Gru,
    /// Lookup tables: one row a token or position.
    Embedding,
}

impl LayerType {
    /// Every type.
    pub const ALL: [LayerType; 7] = {
        use LayerType::*;
        [Linear, Conv1d, Conv2d, ConvTranspose, Lstm, Gru, Embedding]
    };

    /// The name that `--layer-types` takes.
    pub fn name(self) -> &'static str {
        match self {
            LayerType::Linear => "linear",
            LayerType::Conv1d => "conv1d",
            LayerType::Conv2d => "conv2d",
            LayerType::ConvTranspose => "convtranspose",
            LayerType::Lstm => "lstm",
            LayerType::Gru => "gru",
            LayerType::Embedding => "embedding",
        }
    }
}

impl std::fmt::Display for LayerType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for LayerType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        LayerType::ALL.into_iter().find(|t| t.name() == text).ok_or_else(|| {
            let names = LayerType::ALL.map(LayerType::name).join(", ");
            Error::Usage(format!("'{text}' is not a layer type; accepted: {names}"))
        })
    }
}

/// Which tensors are quantized, and how.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Name of the preset that it started from.
    pub preset: String,
    /// Whether a number of bits chose that preset: of a GGUF model it means another.
    pub by_bits: bool,
    /// What happens to the chosen tensors.
    pub method: Method,
    /// If any: only names in which one of these is found are candidates, output heads and routers among them.
    pub include: Vec<Regex>,
    /// Names in which one of these is found are left alone, whatever else is said.
    pub exclude: Vec<Regex>,
    /// Kinds of layers that are candidates.
    pub layer_types: Vec<LayerType>,
    /// Layers with fewer weights are left alone.
    pub min_params: u64,
    /// What the program that made the model knows: the layer type of each weight. Then no other tensor is a candidate,
    /// and names tell nothing about types.
    pub declared: Option<BTreeMap<String, LayerType>>,
    /// Ranges of inputs, for static scales; Linear layers and convolutions without any are left alone.
    pub calibration: Option<Calibration>,
    /// Other schemes for some layers; of those that match, the last that sets a key decides it.
    pub overrides: Vec<Override>,
}

impl Recipe {
    /// A preset, applied to every Linear layer.
    pub fn new(preset: &Preset) -> Self {
        Recipe {
            preset: preset.name.to_owned(),
            by_bits: false,
            method: preset.method,
            include: Vec::new(),
            exclude: Vec::new(),
            layer_types: vec![LayerType::Linear],
            min_params: 0,
            declared: None,
            calibration: None,
            overrides: Vec::new(),
        }
    }

    /// Everything that decides the output, with sorted keys: equal recipes give equal bytes.
    pub fn to_json(&self) -> Value {
        let strings =
            |patterns: &[Regex]| -> Value { patterns.iter().map(|p| Value::from(p.as_str())).collect() };
        let mut types = self.layer_types.clone();
        types.sort();
        types.dedup();
        let method = match self.method {
            Method::Quantize(scheme) => {
                // Plain numbers, strings and maps: this cannot fail.
                json!({ "quantize": serde_json::to_value(scheme).unwrap_or(Value::Null) })
            }
            Method::Cast(float) => json!({ "cast": float.torch_name() }),
            Method::Blocks(mixture) => json!({ "blocks": mixture }),
        };
        let mut recipe = json!({
            "preset": self.preset,
            "method": method,
            "include": strings(&self.include),
            "exclude": strings(&self.exclude),
            "layer_types": types.iter().map(|t| t.name()).collect::<Vec<_>>(),
            "min_params": self.min_params,
            "overrides": self.overrides.iter().map(Override::to_string).collect::<Vec<_>>(),
        });
        if let Some(calibration) = &self.calibration {
            let kinds: BTreeSet<String> =
                calibration.layers.values().map(|o| json!(o.kind()).to_string()).collect();
            recipe["calibration"] = json!({"symmetric": calibration.symmetric, "observers": kinds});
        }
        sorted(recipe)
    }
}

/// The same value with the keys of every object in order.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().map(|(k, v)| (k, sorted(v))).collect::<Map<_, _>>())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::PRESETS;

    #[test]
    fn layer_types_parse_by_name() {
        for t in LayerType::ALL {
            assert_eq!(t.name().parse::<LayerType>().ok(), Some(t));
        }
        let error = "conv3d".parse::<LayerType>().unwrap_err().to_string();
        assert_eq!(
            error,
            "'conv3d' is not a layer type; accepted: linear, conv1d, conv2d, convtranspose, lstm, gru, embedding"
        );
    }

    #[test]
    fn json_is_sorted_and_complete() {
        let mut recipe = Recipe::new(&PRESETS[0]);
        recipe.overrides.push("down=group-size=32,bits=8".parse().unwrap());
        recipe.include.push(Regex::new("proj").unwrap());
        let text = serde_json::to_string(&recipe.to_json()).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"exclude":[],"include":["proj"],"layer_types":["linear"],"#,
                r#""method":{"quantize":{"activations":"float","bits":4,"observer":{"mse":{"both_signs":true}},"#,
                r#""strategy":{"group":{"group_size":128}},"symmetric":true}},"min_params":0,"#,
                r#""overrides":["down=bits=8,group-size=32"],"preset":"w4a16"}"#
            )
        );
    }
}
