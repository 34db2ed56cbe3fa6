//! Output formats: names, shapes, byte order and config of what is written. A new one is a file and a line in [`ALL`].

pub mod awq;
pub mod compressed_tensors;
mod fused;
pub mod gptq;
mod gptqmodel;

use crate::{
    packing::ZeroPoints,
    recipe::Layer,
    scheme::Scheme,
    tensor::{Float, TensorInfo},
};
use serde_json::Value;

/// A stored piece of a quantized layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The codes, row after row; of a copy or a cast, everything.
    Codes,
    /// The codes, in words of neighbours along a row, transposed: GPTQ's.
    TransposedCodes,
    /// The codes, in words of eight rows: AWQ's.
    AwqCodes,
    /// The scales, a row of groups after another.
    Scales,
    /// The scales, transposed.
    TransposedScales,
    /// Zero points as int8, tile by tile.
    ZeroPoints,
    /// Zero points packed into words.
    PackedZeroPoints(ZeroPoints),
    /// The group of every input, once.
    GroupIndex,
    /// The layer's shape, once.
    Shape,
    /// The scale of the layer's inputs, once.
    InputScale,
    /// The zero point of the layer's inputs, once.
    InputZeroPoint,
}

/// Names that the pieces of a quantized weight can have, in any format.
pub(crate) fn part_names(weight: &str) -> Vec<String> {
    use compressed_tensors::{PACKED, SCALE, SHAPE, ZERO_POINT};
    let mut names: Vec<String> =
        ["", PACKED, SCALE, ZERO_POINT, SHAPE].iter().map(|suffix| format!("{weight}{suffix}")).collect();
    if let Some(module) = module(weight) {
        names.extend(gptq::PARTS.iter().map(|part| format!("{module}{part}")));
    }
    names
}

/// The name of a weight without `weight`, so with the dot that follows a module's.
pub(crate) fn module(weight: &str) -> Option<&str> {
    weight.strip_suffix("weight").filter(|module| module.is_empty() || module.ends_with('.'))
}

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

/// Why a format cannot hold a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What does not fit, and what would.
    pub what: String,
    /// Whether it is the layer's shape, so that the layer could be kept instead.
    pub shape: bool,
}

/// How quantized layers are laid out on disk.
pub trait OutputFormat: Sync {
    /// Name for `--format`.
    fn name(&self) -> &'static str;
    /// Whether it can only hold layers whose inputs stay in floating point.
    fn weight_only(&self) -> bool {
        false
    }
    /// The dtype of scales beside weights of this dtype.
    fn scale_dtype(&self, weights: Float) -> Float {
        weights
    }
    /// Whether groups are centred on zero if nobody said; by default as the preset has it.
    fn usually_symmetric(&self) -> Option<bool> {
        None
    }
    /// Why it cannot hold this layer.
    fn refuses(&self, _layer: &Layer) -> Option<Refusal> {
        None
    }
    /// Why it cannot hold these layers in one checkpoint.
    fn refuses_together(&self, _layers: &[Quantized], _kept: &[String]) -> Vec<String> {
        Vec::new()
    }
    /// The tensors of one layer, with what goes into each.
    fn tensors(&self, layer: &Layer, scale: Float) -> Vec<(Part, TensorInfo)>;
    /// The entry `quantization_config` of config.json. `kept` are the modules of Linear weights that stay as they are.
    fn config(&self, layers: &[Quantized], kept: &[String]) -> Value;
    /// The name of a file beside config.json that holds the same entry.
    fn config_file(&self) -> Option<&'static str> {
        None
    }
    /// What loaders refuse about these layers of a model of these types, other modules being kept: which one, and why.
    fn loader_notes(&self, layers: &[&Layer], kept: &[String], model_types: &[String]) -> Vec<String>;
}

/// Every format.
pub const ALL: [&dyn OutputFormat; 3] = [&compressed_tensors::CompressedTensors, &gptq::Gptq, &awq::Awq];

/// The format of this name.
pub fn by_name(name: &str) -> Option<&'static dyn OutputFormat> {
    ALL.into_iter().find(|f| f.name() == name)
}
