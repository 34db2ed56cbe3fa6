//! Output formats: names, shapes, byte order and config of what is written. A new one is a file and a line in [`ALL`].

pub mod compressed_tensors;

use crate::{
    recipe::Layer,
    scheme::Scheme,
    tensor::{Float, TensorInfo},
};
use serde_json::Value;

/// A stored piece of a quantized layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The codes, tile by tile.
    Codes,
    /// The scales, tile by tile.
    Scales,
    /// Zero points as int8, tile by tile.
    ZeroPoints,
    /// Zero points packed along the output axis, at the layer's end.
    PackedZeroPoints,
    /// The layer's shape, once.
    Shape,
    /// The scale of the layer's inputs, once.
    InputScale,
    /// The zero point of the layer's inputs, once.
    InputZeroPoint,
}

/// What the pieces of a quantized weight add to its name.
pub const PARTS: [&str; 5] = {
    use compressed_tensors::{PACKED, SCALE, SHAPE, ZERO_POINT};
    ["", PACKED, SCALE, ZERO_POINT, SHAPE]
};

/// A layer that was quantized, as the config must describe it.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// Module name, or the weight's own where the module has several.
    pub target: String,
    /// How.
    pub scheme: Scheme,
    /// Whether the class name `Linear` means it.
    pub linear: bool,
}

/// How quantized layers are laid out on disk.
pub trait OutputFormat: Sync {
    /// Name for `--format`.
    fn name(&self) -> &'static str;
    /// The tensors of one layer, with what goes into each.
    fn tensors(&self, layer: &Layer, scale: Float) -> Vec<(Part, TensorInfo)>;
    /// The entry `quantization_config` of config.json. `kept` are the modules of Linear weights that stay as they are.
    fn config(&self, layers: &[Quantized], kept: &[String]) -> Value;
    /// What loaders refuse about these layers of a model of these types: which one, and why.
    fn loader_notes(&self, layers: &[&Layer], model_types: &[String]) -> Vec<String>;
}

/// Every format.
pub const ALL: [&dyn OutputFormat; 1] = [&compressed_tensors::CompressedTensors];

/// The format of this name.
pub fn by_name(name: &str) -> Option<&'static dyn OutputFormat> {
    ALL.into_iter().find(|f| f.name() == name)
}
