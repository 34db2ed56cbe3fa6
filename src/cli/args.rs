//! What can be said on the command line.

mod quantize;
mod recorded;

pub use quantize::Quantize;
pub use recorded::parsed;

use crate::{
    device,
    error::{Error, Result},
    formats::{self, OutputFormat},
    gpu::{self, GpuOptions},
    quantize::Settings,
    tensor::Float,
};
use bytesize::ByteSize;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, builder::PossibleValuesParser};
use std::path::PathBuf;

/// Quantizes neural-network weights on any GPU, or none, to the same bytes.
#[derive(Parser)]
#[command(name = "monoquant", version, propagate_version = true, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Log on stderr what is decided for each tensor, and how long each stage takes; -vv every tile (RUST_LOG, if set,
    /// says instead: monoquant=info, …)
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
}

#[derive(Subcommand)]
pub enum Command {
    /// Quantize a checkpoint, or cast it
    Quantize(Box<Quantize>),
    /// Turn codes back into floats
    Dequantize(Dequantize),
    /// Write quantized layers in other layouts, without loss
    Convert(Convert),
    /// List layers, dtypes, schemes and sizes
    #[command(visible_alias = "info")]
    Inspect(Model),
    /// SQNR, largest error and size of every layer, between two checkpoints
    Compare(Compare),
    /// Hold an output against what it was made from: every code, cast and copy, and the SHA-256 of a report
    Verify(Verify),
    /// Run what a report records again, and say whether the same bytes come out, or what differs
    Reproduce(Reproduce),
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
    /// Replace an existing output; without --resume also what an unfinished run left
    #[arg(short, long)]
    pub force: bool,
    /// Go on with what an unfinished run left beside the output: same version, input and options, several files
    #[arg(long)]
    pub resume: bool,
    /// auto (a hardware GPU, else the CPU), cpu, gpu (any adapter), gpu:N (as `monoquant devices` numbers them), a part of an
    /// adapter's name, or several that share the work: gpu:0,gpu:1
    #[arg(short, long, default_value = "auto", value_name = "DEVICE")]
    pub device: String,
    /// Memory to stay under; the plan takes some 5 KB a tensor besides
    #[arg(long, default_value = "512MiB", value_name = "SIZE", value_parser = size)]
    pub max_memory: ByteSize,
    /// Read the output again and hold it against the input, before it takes its place: every code is within half a step of its
    /// weight (or clipped), every cast the nearest value, every copy the same bytes
    #[arg(long)]
    pub verify: bool,
    /// Only show the plan: a row a tensor, sizes before and after
    #[arg(long)]
    pub dry_run: bool,
    /// Write a report of every layer as JSON, with the SHA-256 of every file of the output; `monoquant reproduce` reads it
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,
    /// Also put the SHA-256 of the input's files into the report (they are read once more)
    #[arg(long)]
    pub hash_input: bool,
    /// Write a Chrome trace of the run's stages, for chrome://tracing or ui.perfetto.dev
    #[arg(long, value_name = "FILE.json")]
    pub profile: Option<PathBuf>,
    /// Print only warnings and the output's path
    #[arg(short, long)]
    pub quiet: bool,
    /// Print the report (or the plan) as JSON
    #[arg(long)]
    pub json: bool,
    /// Bytes of weights a tile; for tests
    #[arg(long, hide = true, value_parser = size)]
    pub tile_bytes: Option<ByteSize>,
    /// Lose the GPU after so many tiles; for tests
    #[arg(long, hide = true)]
    pub lose_gpu_after: Option<u64>,
}

impl Out {
    pub fn settings(&self) -> Result<Settings> {
        let max_memory = enough(self.max_memory)?;
        let Ok(device) = self.device.parse::<device::Choice>();
        let settings = Settings {
            output: self.output.clone(),
            force: self.force,
            resume: self.resume,
            verify: self.verify,
            device,
            max_memory,
            tile_bytes: self.tile_bytes.map(|b| b.0 as usize),
            gpu: GpuOptions {
                cache: gpu::cache_directory(),
                lose_after: self.lose_gpu_after,
                ..GpuOptions::default()
            },
            ..Settings::default()
        };
        Ok(settings)
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum FloatName {
    F32,
    F16,
    Bf16,
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
    #[arg(long, default_value = "5GB", value_name = "SIZE", value_parser = size)]
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
pub struct Convert {
    /// A quantized checkpoint: a file (.safetensors, .pt, …) or a directory
    #[arg(short, long, value_name = "CHECKPOINT")]
    pub model: PathBuf,
    /// Layouts to write; of several, each goes to a folder of the output
    #[arg(long, required = true, value_name = "FORMATS", value_delimiter = ',', value_parser = format_names())]
    format: Vec<String>,
    #[command(flatten)]
    pub out: Out,
    /// Largest file of an output directory
    #[arg(long, default_value = "5GB", value_name = "SIZE", value_parser = size)]
    max_shard_size: ByteSize,
}

impl Convert {
    pub fn formats(&self) -> Result<Vec<&'static dyn OutputFormat>> {
        chosen_formats(&self.format)
    }

    pub fn max_shard_size(&self) -> u64 {
        self.max_shard_size.0
    }
}

/// A number of bytes. The parser's own message tells of its insides.
fn size(text: &str) -> std::result::Result<ByteSize, String> {
    let accepted = "accepted is a size above 0, such as 512MiB or 5GB";
    text.parse().ok().filter(|size: &ByteSize| size.0 > 0).ok_or_else(|| accepted.to_owned())
}

fn format_names() -> PossibleValuesParser {
    PossibleValuesParser::new(formats::ALL.map(|f| f.name()))
}

/// The formats of these names, each once.
pub fn chosen_formats(names: &[String]) -> Result<Vec<&'static dyn OutputFormat>> {
    let mut chosen: Vec<&'static dyn OutputFormat> = Vec::new();
    for name in names {
        if chosen.iter().any(|format| format.name() == name) {
            return Err(Error::Usage(format!("--format {}: {name} is there twice", names.join(","))));
        }
        let format = formats::by_name(name);
        chosen.push(format.ok_or_else(|| Error::Usage(format!("--format {name}: no such format")))?);
    }
    Ok(chosen)
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

/// Memory to stay under, for commands that only read.
fn enough(max_memory: ByteSize) -> Result<u64> {
    const LEAST: u64 = 32 << 20;
    match max_memory.0 < LEAST {
        true => Err(Error::Usage(format!("--max-memory {max_memory}: at least 32MiB are needed"))),
        false => Ok(max_memory.0),
    }
}

#[derive(Args)]
pub struct Verify {
    /// The output: a file, or a directory
    pub output: PathBuf,
    /// What it was made from
    #[arg(long, value_name = "CHECKPOINT")]
    pub against: PathBuf,
    /// Also compare the SHA-256 of every file with this report, as --report or --json wrote it
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,
    /// Memory to stay under; the plan takes some 5 KB a tensor besides
    #[arg(long, default_value = "512MiB", value_name = "SIZE", value_parser = size)]
    max_memory: ByteSize,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

impl Verify {
    pub fn max_memory(&self) -> Result<u64> {
        enough(self.max_memory)
    }
}

#[derive(Args)]
pub struct Reproduce {
    /// A report, as --report or --json of quantize, dequantize or convert wrote it
    pub report: PathBuf,
    /// The input, if it lies elsewhere now
    #[arg(short, long, value_name = "CHECKPOINT")]
    pub model: Option<PathBuf>,
    /// Keep what is made, here [default: it is removed]
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// What computes, as in `monoquant quantize`; it decides no byte
    #[arg(short, long, default_value = "auto", value_name = "DEVICE")]
    pub device: String,
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
