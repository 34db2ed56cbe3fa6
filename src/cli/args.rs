//! What can be said on the command line.

use crate::{
    calibration::Calibration,
    device,
    error::{Error, Result},
    formats,
    observer::Observer,
    plan::{OnMismatch, Request},
    quantize::{OnNonFinite, Settings},
    recipe::{LayerType, Override, Recipe},
    scheme::{Activations, Method, PRESETS, Scheme, Strategy, preset, presets},
    tensor::Float,
};
use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValuesParser};
use regex::Regex;
use std::path::PathBuf;

/// Quantizes neural-network weights on any GPU, or none, to the same bytes.
#[derive(Parser)]
#[command(name = "monoquant", version, propagate_version = true, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Quantize a checkpoint, or cast it
    Quantize(Box<Quantize>),
    /// Turn codes back into floats
    Dequantize(Dequantize),
    /// List layers, dtypes, schemes and sizes
    #[command(visible_alias = "info")]
    Inspect(Model),
    /// SQNR, largest error and size of every layer, between two checkpoints
    Compare(Compare),
    /// Check that a quantized checkpoint is whole, finite and loadable
    Validate(Model),
    /// Record statistics of a program's inputs for --calibration (in the Python package, as it runs the program)
    Calibrate(Calibrate),
    /// List GPUs, and check that they compute what the CPU computes
    Devices(Devices),
}

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct Calibrate {
    /// --program model.pt2 --data samples.pt, and more that the Python package explains
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _rest: Vec<String>,
}

/// Where results go, and how they are computed.
#[derive(Args)]
pub struct Out {
    /// Where the result goes: NAME.safetensors, NAME.pt, NAME.gguf (of a GGUF model) or a directory [default: beside the input, with a suffix such as -w4a16]
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Replace an existing output
    #[arg(short, long)]
    pub force: bool,
    /// auto (a hardware GPU, else the CPU), cpu, gpu (any adapter), or a part of an adapter's name
    #[arg(short, long, default_value = "auto", value_name = "DEVICE")]
    pub device: String,
    /// Memory to stay under
    #[arg(long, default_value = "512MiB", value_name = "SIZE")]
    pub max_memory: ByteSize,
    /// Only show the plan: a row a tensor, sizes before and after
    #[arg(long)]
    pub dry_run: bool,
    /// Write a report of every layer as JSON
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,
    /// Print only warnings and the output's path
    #[arg(short, long)]
    pub quiet: bool,
    /// Print the report (or the plan) as JSON
    #[arg(long)]
    pub json: bool,
    /// Bytes of weights a tile; for tests
    #[arg(long, hide = true)]
    pub tile_bytes: Option<ByteSize>,
}

impl Out {
    pub fn settings(&self) -> Result<Settings> {
        const LEAST: u64 = 32 << 20;
        if self.max_memory.0 < LEAST {
            return Err(Error::Usage(format!("--max-memory {}: at least 32MiB are needed", self.max_memory)));
        }
        let Ok(device) = self.device.parse::<device::Choice>();
        let settings = Settings {
            output: self.output.clone(),
            force: self.force,
            device,
            max_memory: self.max_memory.0,
            tile_bytes: self.tile_bytes.map(|b| b.0 as usize),
            ..Settings::default()
        };
        Ok(settings)
    }
}

#[derive(Args)]
pub struct Quantize {
    /// A .safetensors, .pt, .pth, .bin, .ckpt or .gguf file, or a directory with one or with shards and an index
    #[arg(short, long, value_name = "CHECKPOINT")]
    pub model: PathBuf,
    #[command(flatten)]
    pub out: Out,
    /// Bits a weight: 8 is preset w8a8 (of a GGUF model q8_0), 4 is w4a16 (q4_k_m), 16 is fp16 [default: 8]
    #[arg(short, long, value_parser = PossibleValuesParser::new(["4", "8", "16"]), conflicts_with = "preset")]
    bits: Option<String>,
    /// A scheme by its usual name; those from q8_0 to q6_k are for GGUF models
    #[arg(short, long, value_parser = PossibleValuesParser::new(presets().map(|p| p.name)))]
    preset: Option<String>,
    /// Whether ranges are centred on zero
    #[arg(short, long)]
    scheme: Option<Symmetry>,
    /// How ranges are found [default: minmax]
    #[arg(long, value_parser = PossibleValuesParser::new(Observer::NAMES))]
    observer: Option<String>,
    /// Percent of a channel's weights that the percentile observer keeps [default: 99.9]
    #[arg(long, value_name = "PERCENT")]
    percentile: Option<f64>,
    /// Signs of the scale that the mse observer tries [default: any]
    #[arg(long)]
    scale_sign: Option<ScaleSign>,
    /// Which weights share a scale [default: group for 4 bits, channel for 8]
    #[arg(long)]
    strategy: Option<StrategyName>,
    /// Weights a group; implies --strategy group [default: 128]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    group_size: Option<u32>,
    /// Layout of quantized layers
    #[arg(long, default_value = "compressed-tensors", value_parser = PossibleValuesParser::new(formats::ALL.map(|f| f.name())))]
    format: String,
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
    #[arg(long, default_value = "5GB", value_name = "SIZE")]
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

#[derive(Clone, Copy, ValueEnum)]
enum FloatName {
    F32,
    F16,
    Bf16,
}

impl Quantize {
    pub fn on_non_finite(&self) -> OnNonFinite {
        match self.on_nonfinite {
            NonFinite::Refuse => OnNonFinite::Refuse,
            NonFinite::Keep => OnNonFinite::Keep,
        }
    }

    pub fn request(&self) -> Result<Request> {
        let bits = self.bits.as_deref().unwrap_or("8");
        let by_bits = || PRESETS.iter().find(|p| p.bits.is_some_and(|b| b.to_string() == bits));
        let preset = self.preset.as_deref().map_or_else(by_bits, preset);
        let preset =
            preset.ok_or_else(|| Error::Usage(format!("--bits {bits}: accepted are 4, 8 and 16")))?;
        let mut recipe = Recipe::new(preset);
        recipe.method = match preset.method {
            Method::Quantize(scheme) => Method::Quantize(self.changed(scheme)?),
            Method::Cast(to) => {
                self.refuse_scheme_options(&format!("{}, which casts every float tensor", preset.name))?;
                Method::Cast(to)
            }
            Method::Blocks(mixture) => {
                let why = "a mixture of GGUF's block types, which fix schemes and groups";
                self.refuse_scheme_options(&format!("{}, {why}", preset.name))?;
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
        if self.max_shard_size.0 == 0 {
            return Err(Error::Usage("--max-shard-size 0: accepted is a size such as 5GB".into()));
        }
        let format = formats::by_name(&self.format)
            .ok_or_else(|| Error::Usage(format!("--format {}: no such format", self.format)))?;
        let on_mismatch = match self.on_mismatch {
            Mismatch::Refuse => OnMismatch::Refuse,
            Mismatch::Shrink => OnMismatch::Shrink,
            Mismatch::Channel => OnMismatch::Channel,
            Mismatch::Keep => OnMismatch::Keep,
        };
        Ok(Request {
            recipe,
            format,
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
        scheme.observer = match self.observer.as_deref() {
            Some("percentile") => {
                let percent = self.percentile.unwrap_or(99.9);
                if !(50.0..=100.0).contains(&percent) {
                    return Err(Error::Usage(format!("--percentile {percent}: accepted is 50 to 100")));
                }
                Observer::Percentile(percent)
            }
            Some("histogram") => Observer::Histogram,
            Some("mse") => {
                Observer::Mse { both_signs: !matches!(self.scale_sign, Some(ScaleSign::Positive)) }
            }
            _ => Observer::MinMax,
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

#[derive(Args)]
pub struct Dequantize {
    /// A quantized checkpoint: a file (.safetensors, .pt, …) or a directory
    #[arg(short, long, value_name = "CHECKPOINT")]
    pub model: PathBuf,
    #[command(flatten)]
    pub out: Out,
    /// Dtype of every float tensor of the result [default: layers as their scales are stored, the rest as it is]; of a
    /// GGUF model, of matrices only [default: f16 for blocks, the rest as it is]
    #[arg(long)]
    dtype: Option<FloatName>,
    /// Clamp values that overflow the dtype, instead of refusing them
    #[arg(long)]
    pub saturate: bool,
    /// Largest file of an output directory
    #[arg(long, default_value = "5GB", value_name = "SIZE")]
    max_shard_size: ByteSize,
}

impl Dequantize {
    pub fn dtype(&self) -> Option<Float> {
        self.dtype.map(|name| match name {
            FloatName::F32 => Float::F32,
            FloatName::F16 => Float::F16,
            FloatName::Bf16 => Float::BF16,
        })
    }

    pub fn max_shard_size(&self) -> u64 {
        self.max_shard_size.0
    }
}

#[derive(Args)]
pub struct Model {
    /// A file (.safetensors, .pt, …) or a directory
    #[arg(short, long = "model", value_name = "CHECKPOINT", required_unless_present = "path")]
    model: Option<PathBuf>,
    /// The same, without -m
    #[arg(value_name = "CHECKPOINT", conflicts_with = "model")]
    path: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

impl Model {
    pub fn model(&self) -> PathBuf {
        self.model.clone().or_else(|| self.path.clone()).unwrap_or_default()
    }
}

#[derive(Args)]
pub struct Compare {
    /// The reference
    pub a: PathBuf,
    /// What is compared with it; either may be quantized
    pub b: PathBuf,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Devices {
    /// Run every kernel on every adapter and compare with the CPU, byte for byte
    #[arg(long)]
    pub check: bool,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}
