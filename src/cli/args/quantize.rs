//! What `monoquant quantize` takes.

use super::{Out, chosen_formats, format_names, size};
use crate::{
    calibration::Calibration,
    error::{Error, Result},
    formats::{self, OutputFormat},
    observer::Observer,
    plan::{OnMismatch, Request},
    quantize::OnNonFinite,
    recipe::{LayerType, Override, Recipe},
    scheme::{Activations, Method, PRESETS, Scheme, Strategy, preset, presets},
};
use bytesize::ByteSize;
use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use regex::Regex;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Quantize {
    /// A .safetensors, .pt, .pth, .bin, .ckpt or .gguf file, or a directory with one or with shards and an index
    #[arg(short, long, value_name = "CHECKPOINT")]
    pub model: PathBuf,
    #[command(flatten)]
    pub out: Out,
    /// Bits a weight: 8 is preset w8a8 (w8a16 in formats without quantized inputs, q8_0 of a GGUF model), 4 is w4a16 (q4_k_m), 16 is fp16 [default: 8]
    #[arg(short, long, value_parser = PossibleValuesParser::new(["4", "8", "16"]), conflicts_with = "preset")]
    bits: Option<String>,
    /// A scheme by its usual name; those from q8_0 to q6_k are for GGUF models
    #[arg(short, long, value_parser = PossibleValuesParser::new(presets().map(|p| p.name)))]
    preset: Option<String>,
    /// Whether ranges are centred on zero
    #[arg(short, long)]
    scheme: Option<Symmetry>,
    /// How ranges are found [default: mse for 4 bits, minmax for 8]
    #[arg(long, value_parser = PossibleValuesParser::new(Observer::NAMES))]
    observer: Option<String>,
    /// Percent of a channel's weights that the percentile observer keeps [default: 99.9]
    #[arg(long, value_name = "PERCENT")]
    percentile: Option<f64>,
    /// Signs that scales of the mse observer may have [default: any]
    #[arg(long)]
    scale_sign: Option<ScaleSign>,
    /// Which weights share a scale [default: group for 4 bits, channel for 8]
    #[arg(long)]
    strategy: Option<StrategyName>,
    /// Weights a group; implies --strategy group [default: 128]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    group_size: Option<u32>,
    /// Layouts of quantized layers, from one reading; of several, each goes to a folder of the output
    #[arg(long, default_value = "compressed-tensors", value_name = "FORMATS", value_delimiter = ',', value_parser = format_names())]
    format: Vec<String>,
    /// Only tensors in whose name this regular expression is found, output heads and routers too; may be repeated
    #[arg(long, value_name = "REGEX")]
    include: Vec<Regex>,
    /// Leave tensors in whose name this regular expression is found; may be repeated
    #[arg(long, value_name = "REGEX")]
    exclude: Vec<Regex>,
    /// Kinds of layers to quantize: linear, conv1d, conv2d, convtranspose, lstm, gru, embedding
    #[arg(long, value_delimiter = ',', default_value = "linear", value_name = "KINDS")]
    layer_types: Vec<LayerType>,
    /// Leave layers with fewer weights
    #[arg(long, default_value_t = 0, value_name = "N")]
    min_params: u64,
    /// Another scheme for some layers: 'REGEX=bits=8,group-size=64' (bits, group-size, strategy, scheme, observer)
    #[arg(long = "override", value_name = "REGEX=CHANGES")]
    overrides: Vec<Override>,
    /// Statistics of inputs, as monoquant calibrate records them: static scales instead of one a token (8 bits)
    #[arg(long, value_name = "FILE.json")]
    calibration: Option<PathBuf>,
    /// Layers whose rows the group size does not divide: shrink the groups, one scale a channel, keep, or refuse
    #[arg(long, default_value = "refuse", value_name = "WHAT")]
    on_mismatch: Mismatch,
    /// Tensors with NaN or infinity: keep them as they are, or refuse
    #[arg(long, default_value = "refuse", value_name = "WHAT")]
    on_nonfinite: NonFinite,
    /// Clamp values that overflow fp16 or bf16, instead of refusing them
    #[arg(long)]
    saturate: bool,
    /// Largest file of an output directory
    #[arg(long, default_value = "5GB", value_name = "SIZE", value_parser = size)]
    max_shard_size: ByteSize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Symmetry {
    Symmetric,
    Asymmetric,
}

#[derive(Clone, Copy, ValueEnum)]
enum ScaleSign {
    Any,
    Positive,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum StrategyName {
    Tensor,
    Channel,
    Group,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mismatch {
    Refuse,
    Shrink,
    Channel,
    Keep,
}

#[derive(Clone, Copy, ValueEnum)]
enum NonFinite {
    Refuse,
    Keep,
}

impl Quantize {
    pub fn on_non_finite(&self) -> OnNonFinite {
        match self.on_nonfinite {
            NonFinite::Refuse => OnNonFinite::Refuse,
            NonFinite::Keep => OnNonFinite::Keep,
        }
    }

    /// A file beside the input that decides bytes.
    pub fn calibration(&self) -> Option<&Path> {
        self.calibration.as_deref()
    }

    pub fn request(&self) -> Result<Request> {
        let bits = self.bits.as_deref().unwrap_or("8");
        let formats = chosen_formats(&self.format)?;
        let by_bits = || match bits == "8" && formats.iter().any(|format| format.weight_only()) {
            true => preset("w8a16"),
            false => PRESETS.iter().find(|p| p.bits.is_some_and(|b| b.to_string() == bits)),
        };
        let preset = self.preset.as_deref().map_or_else(by_bits, preset);
        let preset =
            preset.ok_or_else(|| Error::Usage(format!("--bits {bits}: accepted are 4, 8 and 16")))?;
        let mut recipe = Recipe::new(preset);
        recipe.method = match preset.method {
            Method::Quantize(scheme) => Method::Quantize(self.changed(scheme)?),
            Method::Cast(to) => {
                self.refuse_scheme_options(&format!("{}, which casts every float tensor", preset.name))?;
                refuse_layouts(&formats, &format!("{}, which casts every float tensor", preset.name))?;
                Method::Cast(to)
            }
            Method::Blocks(mixture) => {
                let why = "a mixture of GGUF's block types, which fix schemes and groups";
                self.refuse_scheme_options(&format!("{}, {why}", preset.name))?;
                refuse_layouts(&formats, &format!("{}, {why}", preset.name))?;
                Method::Blocks(mixture)
            }
        };
        recipe.by_bits = self.preset.is_none();
        recipe.include.clone_from(&self.include);
        recipe.exclude.clone_from(&self.exclude);
        recipe.layer_types.clone_from(&self.layer_types);
        recipe.min_params = self.min_params;
        if let Some(path) = &self.calibration {
            match recipe.method {
                Method::Quantize(scheme) if scheme.activations == Activations::DynamicToken => {}
                _ => {
                    return Err(Error::Usage(format!(
                        "--calibration is for inputs of 8 bits (--bits 8); those of {} stay in floating point",
                        preset.name
                    )));
                }
            }
            recipe.calibration = Some(Calibration::read(path)?);
        }
        recipe.overrides.clone_from(&self.overrides);
        let on_mismatch = match self.on_mismatch {
            Mismatch::Refuse => OnMismatch::Refuse,
            Mismatch::Shrink => OnMismatch::Shrink,
            Mismatch::Channel => OnMismatch::Channel,
            Mismatch::Keep => OnMismatch::Keep,
        };
        Ok(Request {
            recipe,
            formats,
            symmetry_stated: self.scheme.is_some() || self.overrides.iter().any(Override::states_symmetry),
            on_mismatch,
            saturate: self.saturate,
            max_shard_size: Some(self.max_shard_size.0),
        })
    }

    fn changed(&self, mut scheme: Scheme) -> Result<Scheme> {
        if let Some(symmetry) = self.scheme {
            scheme.symmetric = matches!(symmetry, Symmetry::Symmetric);
        }
        let group_size = self.group_size.map(|n| n as usize);
        scheme.strategy = match (self.strategy, group_size) {
            (None, None) => scheme.strategy,
            (None | Some(StrategyName::Group), Some(group_size)) => Strategy::Group { group_size },
            (Some(StrategyName::Group), None) => Strategy::Group { group_size: 128 },
            (Some(_), Some(n)) => {
                return Err(Error::Usage(format!("--group-size {n} needs --strategy group")));
            }
            (Some(StrategyName::Tensor), None) if scheme.activations == Activations::Float => {
                return Err(Error::Usage(format!(
                    "--strategy tensor: int{} weights with float inputs take one scale a channel or group; a whole tensor shares one in w8a8 only",
                    scheme.bits
                )));
            }
            (Some(StrategyName::Tensor), None) => Strategy::Tensor,
            (Some(StrategyName::Channel), None) => Strategy::Channel,
        };
        let both_signs = !matches!(self.scale_sign, Some(ScaleSign::Positive));
        scheme.observer = match (self.observer.as_deref(), scheme.observer) {
            (Some("percentile"), _) => {
                let percent = self.percentile.unwrap_or(99.9);
                if !(50.0..=100.0).contains(&percent) {
                    return Err(Error::Usage(format!("--percentile {percent}: accepted is 50 to 100")));
                }
                Observer::Percentile(percent)
            }
            (Some("histogram"), _) => Observer::Histogram,
            (Some("mse"), _) | (None, Observer::Mse { .. }) => Observer::Mse { both_signs },
            (Some(_), _) => Observer::MinMax,
            (None, usual) => usual,
        };
        let without_effect = [
            ("--percentile", "percentile", self.percentile.is_some()),
            ("--scale-sign", "mse", self.scale_sign.is_some()),
        ];
        for (option, observer, given) in without_effect {
            if given && scheme.observer.name() != observer {
                return Err(Error::Usage(format!("{option} has no meaning without --observer {observer}")));
            }
        }
        Ok(scheme)
    }

    /// A cast has no scheme, and blocks have their own; silence would let somebody believe otherwise.
    fn refuse_scheme_options(&self, what: &str) -> Result<()> {
        let given = [
            ("--scheme", self.scheme.is_some()),
            ("--observer", self.observer.is_some()),
            ("--percentile", self.percentile.is_some()),
            ("--scale-sign", self.scale_sign.is_some()),
            ("--strategy", self.strategy.is_some()),
            ("--group-size", self.group_size.is_some()),
            ("--override", !self.overrides.is_empty()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(Error::Usage(format!("{option} has no meaning for {what}"))),
            None => Ok(()),
        }
    }
}

/// Layouts where nothing has one.
fn refuse_layouts(formats: &[&dyn OutputFormat], what: &str) -> Result<()> {
    if let [only] = formats
        && only.name() == formats::ALL[0].name()
    {
        return Ok(()); // nothing was said
    }
    Err(Error::Usage(format!("--format has no meaning for {what}")))
}
