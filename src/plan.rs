//! The plan: from headers, config and a request, everything that is decided before a weight is read. Pure.
//!
//! All refusals happen here, all at once. The layout of the output is known when planning is done, as every size
//! follows from the shapes.

mod builder;
mod config;
pub mod gguf;
mod layout;
mod log;
mod refusals;

pub(crate) use config::{kept_modules, quantized, set_dtype};
pub use layout::index;
pub(crate) use layout::{lay_out, tie};

use builder::{Builder, StoredPart};
use refusals::{already_quantized, duplicates};

use crate::{
    block::Block,
    calibration::InputQParams,
    error::{Error, Result},
    formats::{OutputFormat, Part, Quantized},
    names::Facts,
    recipe::{Choice, Layer, Reason, Recipe, choose, unmatched},
    scheme::{Grid, Method, Scheme},
    tensor::{Float, TensorInfo, View},
    writer::FileLayout,
};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// What to do with a layer whose rows the group size does not divide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMismatch {
    /// Refuse, and name the sizes that divide.
    Refuse,
    /// Take the largest power of two that divides.
    Shrink,
    /// One scale a row.
    Channel,
    /// Leave the layer as it is.
    Keep,
}

/// What is asked for, apart from where it goes.
pub struct Request {
    /// Which tensors, and how.
    pub recipe: Recipe,
    /// The layouts of quantized layers; of several, each goes to a folder of its name.
    pub formats: Vec<&'static dyn OutputFormat>,
    /// Whether the user said that ranges are (or are not) centred on zero; else a format may have its own usage.
    pub symmetry_stated: bool,
    /// Layers whose rows do not divide.
    pub on_mismatch: OnMismatch,
    /// Clamp what overflows a cast.
    pub saturate: bool,
    /// Largest file, in bytes; a single file holds everything whatever its size.
    pub max_shard_size: Option<u64>,
}

/// What is done to make some output tensors.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Codes, scales and zero points of a layer, on every grid that a format needs.
    Quantize(Vec<Grid>),
    /// Another float dtype.
    Cast(Float),
    /// The same bytes; of a part of stacked experts, gathered.
    Copy,
    /// Floats from codes (planned by [`crate::unpack`]).
    Dequantize(usize),
    /// The same codes in another layout (planned by [`crate::convert`]).
    Repack(usize, Grid),
    /// GGUF blocks.
    QuantizeBlocks(Block),
    /// Floats from GGUF blocks.
    DequantizeBlocks(Block, Float),
}

/// How the codes of a layer lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// In rows of words, offset to unsigned: compressed-tensors' pack-quantized.
    Packed,
    /// As int8: compressed-tensors' int-quantized.
    Int8,
    /// GPTQ's: words of neighbours along a row, transposed.
    Gptq {
        /// Whether zero points are stored less one (version 1).
        less_one: bool,
    },
    /// AWQ's: words of eight rows.
    Awq,
}

/// A quantized layer in the input.
#[derive(Debug, Clone, PartialEq)]
pub struct Coded {
    /// 4 or 8.
    pub bits: u32,
    /// How the codes lie.
    pub layout: Layout,
    /// Output channels.
    pub rows: usize,
    /// Weights a row.
    pub cols: usize,
    /// Weights that share a scale.
    pub group_len: usize,
    /// The tensor of scales, and its dtype.
    pub scales: (usize, Float),
    /// The tensor of zero points.
    pub zero_points: Option<usize>,
    /// What the weights become.
    pub output: Float,
}

impl Coded {
    /// Whether kernels get codes in words; else they are int8.
    pub fn packed(&self) -> bool {
        self.layout != Layout::Int8
    }

    /// Scales of a row.
    pub fn groups(&self) -> usize {
        (self.cols / self.group_len.max(1)).max(1)
    }
}

/// Where a part of what a job makes goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// What of it.
    pub part: Part,
    /// On which of [`Work::Quantize`]'s grids.
    pub grid: usize,
    /// Number of the file.
    pub file: usize,
    /// Number of the tensor in it.
    pub tensor: usize,
}

/// A folder of the output, one a format; the only one is the output itself.
#[derive(Debug, Clone, Default)]
pub struct Folder {
    /// Its name; empty if it is the output itself.
    pub name: String,
    /// The new config.json, if there is one.
    pub config: Option<Value>,
    /// Another file that holds what config.json says of the quantization.
    pub config_file: Option<&'static str>,
}

/// A matrix on its way from the input to the output.
#[derive(Debug, Clone)]
pub struct Job {
    /// Index of the tensor that is read.
    pub source: usize,
    /// The part of it.
    pub view: View,
    /// What is done.
    pub work: Work,
    /// Where it goes. A copy or a cast is [`Part::Codes`], one a format.
    pub outputs: Vec<Place>,
    /// Where it lies inside the output tensor, if it is a part of one or transposed there.
    pub target: Option<View>,
    /// Scale and zero point of the layer's inputs, to be stored.
    pub input: Option<InputQParams>,
    /// Row of [`Plan::rows`].
    pub row: usize,
}

/// One line of `--dry-run` and of the report.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Name of the weight as written.
    pub name: String,
    /// Dtype as stored in the input.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// What happens to it: a scheme, a cast, or "kept".
    pub action: String,
    /// Why it is kept, or what was changed from what was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes in the input.
    pub before: u64,
    /// Bytes in the output, scales included.
    pub after: u64,
    /// The scheme, if it is quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
}

/// All that is decided before a weight is read.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// In reading order.
    pub jobs: Vec<Job>,
    /// What [`Work::Dequantize`] points at.
    pub coded: Vec<Coded>,
    /// The files of tensors.
    pub files: Vec<FileLayout>,
    /// One line a tensor or layer, in the order of the input.
    pub rows: Vec<Row>,
    /// What goes beside them.
    pub folders: Vec<Folder>,
    /// What `general.file_type` of a GGUF file shall say.
    pub file_type: Option<u32>,
    /// What the user should know before it runs: loaders that refuse the result, patterns without a match, changes.
    pub notes: Vec<String>,
}

impl Plan {
    /// Bytes of the input's tensors.
    pub fn bytes_before(&self) -> u64 {
        self.rows.iter().map(|r| r.before).sum()
    }

    /// Bytes of the output's tensors.
    pub fn bytes_after(&self) -> u64 {
        self.rows.iter().map(|r| r.after).sum()
    }
}

/// Non-finite tensors to keep: source → (first index, count).
pub type NonFinite = BTreeMap<usize, (u64, u64)>;

/// Plans a request over these tensors (in reading order). `config` is the model's config.json.
pub fn plan(
    tensors: &[TensorInfo],
    config: Option<&Value>,
    request: &Request,
    non_finite: &NonFinite,
) -> Result<Plan> {
    if matches!(request.recipe.method, Method::Blocks(_)) {
        return Err(Error::refused(gguf::needs_gguf(&request.recipe.preset)));
    }
    let mut problems = already_quantized(tensors, config);
    if !problems.is_empty() {
        return Err(Error::Refused(problems));
    }
    let recipe = &request.recipe;
    let mut builder = Builder {
        request,
        tensors,
        plan: Plan::default(),
        stored: Vec::new(),
        problems: Vec::new(),
        restore: BTreeMap::new(),
    };
    let mut choices = choose(recipe, tensors, config);
    for (&source, &(index, count)) in non_finite {
        choices[source] = Choice::Keep { reason: Reason::NonFinite { index, count } };
    }
    for (source, choice) in choices.into_iter().enumerate() {
        builder.add(source, choice);
    }
    problems.append(&mut builder.problems);
    let layers: Vec<&Layer> = builder.stored.iter().filter_map(|s| s.layer.as_ref()).collect();
    let nothing = match recipe.method {
        Method::Quantize(_) | Method::Blocks(_) => layers.is_empty(),
        Method::Cast(_) => !builder.plan.jobs.iter().any(|j| matches!(j.work, Work::Cast(_))),
    };
    if nothing && problems.is_empty() {
        problems.push(match recipe.method {
            Method::Quantize(_) | Method::Blocks(_) => {
                let why = why_kept(&builder.plan.rows);
                format!(
                    "no layer is left to quantize ({why}); --include, --layer-types and --min-params choose others"
                )
            }
            Method::Cast(to) => {
                format!("nothing to cast: every float tensor is {} already, or empty", to.dtype())
            }
        });
    }
    let kept = builder.kept(config);
    let quantized: Vec<Quantized> = layers.iter().map(|l| quantized(l)).collect();
    let model_types = Facts::new(config, tensors).model_types;
    let mut plan_notes = Vec::new();
    if matches!(recipe.method, Method::Quantize(_)) {
        if request.formats.len() > 1 {
            plan_notes.push(format!(
                "{} layouts: sizes are those of all together, and SQNR is that of the worst",
                request.formats.len()
            ));
        }
        for (number, format) in request.formats.iter().enumerate() {
            let several =
                if request.formats.len() > 1 { format!("{}: ", format.name()) } else { String::new() };
            let notes = format.loader_notes(&layers, &kept, &model_types);
            plan_notes.extend(notes.into_iter().map(|note| format!("{several}{note}")));
            problems.extend(format.refuses_together(&builder.as_in(&quantized, number), &kept));
        }
    }
    plan_notes
        .extend(unmatched(recipe, tensors, config).into_iter().map(|p| format!("{p} matches no tensor")));
    problems.extend(duplicates(&builder.stored));
    if !problems.is_empty() {
        return Err(Error::Refused(problems));
    }
    let folders = builder.folders(config, &quantized, &kept);
    let metadata = (0..folders.len()).map(|format| builder.metadata(format)).collect();
    let Builder { mut plan, stored, .. } = builder;
    plan.folders = folders;
    plan.notes = shortened(std::mem::take(&mut plan.notes));
    plan.notes.extend(plan_notes);
    let mut outputs = Vec::new();
    for (job, stored) in plan.jobs.iter_mut().zip(stored) {
        for StoredPart { folder, grid, part, info } in stored.parts {
            job.outputs.push(Place { part, grid, file: folder, tensor: outputs.len() });
            outputs.push(info);
        }
    }
    lay_out(&mut plan, outputs, request.max_shard_size, metadata);
    Ok(plan)
}

/// The reasons for which matrices are kept, with an example of each.
pub(crate) fn why_kept(rows: &[Row]) -> String {
    let mut reasons: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.shape.len() >= 2) {
        reasons.entry(row.reason.as_deref().unwrap_or(&row.action)).or_insert((0, &row.name)).0 += 1;
    }
    if reasons.is_empty() {
        return "there is no matrix".into();
    }
    let told = reasons.iter().take(8).map(|(reason, (count, name))| match count {
        1 => format!("{name}: {reason}"),
        n => format!("{name} and {} more: {reason}", n - 1),
    });
    told.collect::<Vec<_>>().join("; ")
}

/// The first of many similar notes; every row of the plan has its own reason.
pub(crate) fn shortened(mut notes: Vec<String>) -> Vec<String> {
    const SHOWN: usize = 3;
    if notes.len() > SHOWN + 1 {
        let more = notes.len() - SHOWN;
        notes.truncate(SHOWN);
        notes.push(format!("… and the same of {more} more layers (--dry-run lists all)"));
    }
    notes
}

/// "int4 symmetric, group 128, minmax".
pub fn describe(scheme: &Scheme) -> String {
    let kind = if scheme.symmetric { "symmetric" } else { "asymmetric" };
    format!("int{} {kind}, {}, {}", scheme.bits, scheme.strategy, scheme.observer.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line that says what is left out must leave out more than itself.
    #[test]
    fn many_notes_are_shortened_to_three_and_a_count() {
        for count in 0..8 {
            let notes: Vec<String> = (0..count).map(|n| n.to_string()).collect();
            let short = shortened(notes.clone());
            if count <= 4 {
                assert_eq!(short, notes);
            } else {
                assert_eq!(short[..3], notes[..3]);
                assert!(short.len() == 4 && short[3].contains(&format!(" {} more", count - 3)), "{short:?}");
            }
        }
    }
}
