//! Schemes: how weights become codes. A new integer scheme is one row of [`PRESETS`].

use crate::{block::Block, observer::Observer, tensor::Float};
use serde::{Deserialize, Serialize};

/// Which weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// The whole matrix.
    Tensor,
    /// One output channel: a row.
    Channel,
    /// `group_size` neighbours within a row.
    Group {
        /// Weights a group.
        group_size: usize,
    },
}

impl Strategy {
    /// compressed-tensors' name.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Tensor => "tensor",
            Strategy::Channel => "channel",
            Strategy::Group { .. } => "group",
        }
    }
}

impl std::fmt::Display for Strategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Strategy::Group { group_size } => write!(f, "group {group_size}"),
            other => f.write_str(other.name()),
        }
    }
}

/// What happens to a layer's inputs when the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// Left in floating point.
    Float,
    /// Quantized to int8 while running, one scale a token.
    DynamicToken,
    /// Quantized to int8 by one stored scale, which calibration found.
    StaticTensor {
        /// Whether the codes are centred on zero, without a zero point.
        symmetric: bool,
    },
}

/// How the weights of one layer become codes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scheme {
    /// 4 or 8.
    pub bits: u32,
    /// Whether the range is centred on zero, without a zero point.
    pub symmetric: bool,
    /// Which weights share a scale.
    pub strategy: Strategy,
    /// How the range is found.
    pub observer: Observer,
    /// What happens to the layer's inputs.
    pub activations: Activations,
}

impl Scheme {
    /// Smallest code.
    pub fn qmin(&self) -> i32 {
        -(1 << (self.bits - 1))
    }

    /// Largest code.
    pub fn qmax(&self) -> i32 {
        (1 << (self.bits - 1)) - 1
    }

    /// Whether codes are packed into 32-bit words (weight-only), or stored as int8 (inputs are quantized too).
    pub fn packed(&self) -> bool {
        self.activations == Activations::Float
    }
}

/// Codes and the dtype of their scales: layers on the same grid have the same codes, however they are laid out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// How weights become codes.
    pub scheme: Scheme,
    /// The dtype that scales are stored in, and rounded to before codes are made.
    pub scale: Float,
}

/// What a preset does to the tensors that it touches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// Quantize the selected layers.
    Quantize(Scheme),
    /// Cast every float tensor.
    Cast(Float),
    /// Quantize the weights of a GGUF model into blocks.
    Blocks(Mixture),
}

/// A mixture of GGUF's block types, by the name that llama-quantize gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, non_camel_case_types)]
#[serde(rename_all = "lowercase")]
pub enum Mixture {
    Q4_0,
    Q4_1,
    Q8_0,
    Q4_K_S,
    Q4_K_M,
    Q6_K,
}

impl Mixture {
    /// What most tensors get, and the number for general.file_type.
    fn row(self) -> (Block, u32) {
        match self {
            Mixture::Q4_0 => (Block::Q4_0, 2),
            Mixture::Q4_1 => (Block::Q4_1, 3),
            Mixture::Q8_0 => (Block::Q8_0, 7),
            Mixture::Q4_K_S => (Block::Q4_K, 14),
            Mixture::Q4_K_M => (Block::Q4_K, 15),
            Mixture::Q6_K => (Block::Q6_K, 18),
        }
    }

    /// What most weights become.
    pub fn block(self) -> Block {
        self.row().0
    }

    /// What `general.file_type` says.
    pub fn file_type(self) -> u32 {
        self.row().1
    }
}

/// A named method.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// Name for `--preset`, and the suffix of the output's name.
    pub name: &'static str,
    /// The value of `--bits` that selects it, if any.
    pub bits: Option<u32>,
    /// One line for the help.
    pub about: &'static str,
    /// What it does.
    pub method: Method,
}

const W4A16: Scheme = Scheme {
    bits: 4,
    symmetric: true,
    strategy: Strategy::Group { group_size: 128 },
    observer: Observer::usual(4),
    activations: Activations::Float,
};

/// Every preset.
pub const PRESETS: [Preset; 5] = [
    Preset {
        name: "w4a16",
        bits: Some(4),
        about: "int4 weights in groups of 128, float inputs",
        method: Method::Quantize(W4A16),
    },
    Preset {
        name: "w8a16",
        bits: None,
        about: "int8 weights per channel, packed, float inputs",
        method: Method::Quantize(Scheme {
            bits: 8,
            strategy: Strategy::Channel,
            observer: Observer::usual(8),
            ..W4A16
        }),
    },
    Preset {
        name: "w8a8",
        bits: Some(8),
        about: "int8 weights per channel, inputs quantized per token while running",
        method: Method::Quantize(Scheme {
            bits: 8,
            strategy: Strategy::Channel,
            activations: Activations::DynamicToken,
            observer: Observer::usual(8),
            ..W4A16
        }),
    },
    Preset {
        name: "fp16",
        bits: Some(16),
        about: "every float tensor as IEEE half",
        method: Method::Cast(Float::F16),
    },
    Preset {
        name: "bf16",
        bits: None,
        about: "every float tensor as bfloat16",
        method: Method::Cast(Float::BF16),
    },
];

/// Presets for GGUF models; there `--bits` selects among these, and those that cast.
pub const BLOCK_PRESETS: [Preset; 6] = [
    Preset {
        name: "q8_0",
        bits: Some(8),
        about: "GGUF: int8 in blocks of 32",
        method: Method::Blocks(Mixture::Q8_0),
    },
    Preset {
        name: "q4_0",
        bits: None,
        about: "GGUF: int4 in blocks of 32, symmetric",
        method: Method::Blocks(Mixture::Q4_0),
    },
    Preset {
        name: "q4_1",
        bits: None,
        about: "GGUF: int4 in blocks of 32, with a minimum",
        method: Method::Blocks(Mixture::Q4_1),
    },
    Preset {
        name: "q4_k_s",
        bits: None,
        about: "GGUF: int4 in blocks of 256, some layers with more bits",
        method: Method::Blocks(Mixture::Q4_K_S),
    },
    Preset {
        name: "q4_k_m",
        bits: Some(4),
        about: "GGUF: int4 in blocks of 256, about half of attn_v and ffn_down with 6 bits",
        method: Method::Blocks(Mixture::Q4_K_M),
    },
    Preset {
        name: "q6_k",
        bits: None,
        about: "GGUF: 6 bits in blocks of 256",
        method: Method::Blocks(Mixture::Q6_K),
    },
];

/// Every preset, of both kinds.
pub fn presets() -> impl Iterator<Item = &'static Preset> + Clone {
    PRESETS.iter().chain(&BLOCK_PRESETS)
}

/// The preset of this name.
pub fn preset(name: &str) -> Option<&'static Preset> {
    presets().find(|p| p.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_select_one_preset_each() {
        for bits in [4, 8, 16] {
            assert_eq!(PRESETS.iter().filter(|p| p.bits == Some(bits)).count(), 1);
        }
    }
}
