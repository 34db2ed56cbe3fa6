//! What can happen to a tensor, and why.

use crate::{
    calibration::InputQParams,
    recipe::LayerType,
    scheme::Scheme,
    tensor::{Dtype, View},
};

pub use crate::experts::Part;

/// One matrix to quantize.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Name of the weight as written, e.g. `model.layers.0.mlp.experts.3.gate_proj.weight`.
    pub name: String,
    /// The name without `.weight`; of `lstm.weight_ih_l0` it is `lstm`. Empty for a bare `weight`.
    pub module: String,
    /// Index into the tensors.
    pub source: usize,
    /// The `[out, in]` matrix inside the source.
    pub view: View,
    /// Shape of the layer's weight: `[out, in]`, or `[out, in, kh, kw]` for a convolution.
    pub shape: Vec<usize>,
    /// What kind of layer it is.
    pub layer_type: LayerType,
    /// How it is quantized.
    pub scheme: Scheme,
    /// Scale and zero point of its inputs, if they are static.
    pub input: Option<InputQParams>,
}

/// What happens to a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// Quantized: one layer, or every part of stacked experts.
    Quantize(Vec<Layer>),
    /// Stacked experts of which some parts are quantized; the others are written apart, in their dtype.
    Split {
        /// The quantized parts.
        layers: Vec<Layer>,
        /// The others.
        kept: Vec<Part>,
    },
    /// Kept in its dtype, but written in pieces: what belongs to experts whose weights are split.
    Rename(Vec<Part>),
    /// Cast to the recipe's dtype.
    Cast,
    /// Written as it is.
    Keep {
        /// Why.
        reason: Reason,
    },
}

/// Why a tensor is kept as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// It has no elements.
    #[error("empty")]
    Empty,
    /// Its shape cannot be real.
    #[error("more elements than can be counted")]
    TooLarge,
    /// Integers, booleans, complex numbers.
    #[error("not a float ({0})")]
    NotFloat(Dtype),
    /// A cast would change nothing.
    #[error("already {0}")]
    Already(Dtype),
    /// At most one dimension.
    #[error("norm, bias or other 1-D tensor")]
    Vector,
    /// Several dimensions, but not the weight of a layer.
    #[error("not a layer's weight by its name")]
    NotAWeight,
    /// Another number of dimensions than any layer that can be quantized.
    #[error("{0}-D weight")]
    Dimensions(usize),
    /// A lookup table.
    #[error("embedding")]
    Embedding,
    /// The output head; the name is its module's.
    #[error("output head ({0})")]
    Head(String),
    /// The last matrix of a model whose head is not known by name, at 4 bits.
    #[error("last projection; --include quantizes it")]
    LastProjection,
    /// Decides which experts run.
    #[error("MoE router")]
    Router,
    /// Stacked experts that cannot be taken apart.
    #[error("{0}")]
    Experts(String),
    /// The user said so.
    #[error("excluded by --exclude '{0}'")]
    Excluded(String),
    /// The user named others.
    #[error("not matched by --include")]
    NotIncluded,
    /// The user did not ask for this kind.
    #[error("{0} is not among --layer-types")]
    LayerType(LayerType),
    /// Too small to be worth it.
    #[error("fewer than --min-params {min} weights ({weights})")]
    Small {
        /// What the user asked for.
        min: u64,
        /// What it has.
        weights: u64,
    },
    /// An override leaves it in floating point.
    #[error("override says 16 bits")]
    Override,
    /// It holds NaN or infinity, and `--on-nonfinite keep` was said.
    #[error("{count} value{} not finite, the first at index {index}", if *count == 1 { " is" } else { "s are" })]
    NonFinite {
        /// Index of the first, in elements.
        index: u64,
        /// How many there are.
        count: u64,
    },
    /// Groups do not divide its rows, and `--on-mismatch keep` was said.
    #[error("groups of {group_size} do not divide its rows of {row}")]
    Mismatch {
        /// Weights a group.
        group_size: usize,
        /// Weights a row.
        row: usize,
    },
    /// Its inputs were never seen.
    #[error("not reached by calibration")]
    NotCalibrated,
    /// Its statistics yield no scale.
    #[error("{0}")]
    Statistics(String),
    /// It must stay equal to another tensor.
    #[error("tied to {0}")]
    Tied(String),
}
