//! The plan: from headers, config and a request, everything that is decided before a weight is read. Pure.
//!
//! All refusals happen here, all at once. The layout of the output is known when planning is done, as every size
//! follows from the shapes.

mod config;
mod layout;
mod refusals;

pub(crate) use config::set_dtype;
pub use layout::index;
pub(crate) use layout::lay_out;

use config::{kept_modules, quantized};
use refusals::{already_quantized, duplicates, mismatch};

use crate::{
    error::{Error, Result},
    formats::{OutputFormat, Part},
    names::{Facts, heads_without_a_tensor},
    recipe::{Choice, Layer, Reason, Recipe, choose, unmatched},
    scheme::{Method, Scheme, Strategy},
    tensor::{Float, TensorInfo, View},
    writer::FileLayout,
};
use serde::Serialize;
use serde_json::{Value, json};
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
    /// The layout of quantized layers.
    pub format: &'static dyn OutputFormat,
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
    /// Codes, scales and zero points of a layer.
    Quantize(Scheme),
    /// Another float dtype.
    Cast(Float),
    /// The same bytes; of a part of stacked experts, gathered.
    Copy,
    /// Floats from codes (planned by [`crate::unpack`]).
    Dequantize(usize),
}

/// A quantized layer in the input.
#[derive(Debug, Clone, PartialEq)]
pub struct Coded {
    /// 4 or 8.
    pub bits: u32,
    /// Whether codes are packed into words, offset to unsigned; else they are int8.
    pub packed: bool,
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

/// A matrix on its way from the input to the output.
#[derive(Debug, Clone)]
pub struct Job {
    /// Index of the tensor that is read.
    pub source: usize,
    /// The part of it.
    pub view: View,
    /// What is done.
    pub work: Work,
    /// Where it goes: file and tensor of each part. A copy or a cast has one, as [`Part::Codes`].
    pub outputs: Vec<(Part, usize, usize)>,
    /// Where it lies inside the output tensor, if it is a part of one or transposed there.
    pub target: Option<View>,
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
    /// The new config.json, if there is one.
    pub config: Option<Value>,
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
        Method::Quantize(_) => layers.is_empty(),
        Method::Cast(_) => !builder.plan.jobs.iter().any(|j| matches!(j.work, Work::Cast(_))),
    };
    if nothing && problems.is_empty() {
        problems.push(match recipe.method {
            Method::Quantize(_) => {
                "no layer is left to quantize; --dry-run lists why each tensor is kept, and \
                 --include, --layer-types and --min-params choose others"
                    .into()
            }
            Method::Cast(to) => {
                format!("nothing to cast: no float tensor has another dtype than {}", to.dtype())
            }
        });
    }
    let mut plan_notes = request.format.loader_notes(&layers, &Facts::new(config, tensors).model_types);
    plan_notes
        .extend(unmatched(recipe, tensors, config).into_iter().map(|p| format!("{p} matches no tensor")));
    problems.extend(duplicates(&builder.stored));
    if !problems.is_empty() {
        return Err(Error::Refused(problems));
    }
    let new_config = config.map(|c| builder.config(c));
    let metadata = builder.metadata();
    let Builder { mut plan, stored, .. } = builder;
    plan.config = new_config;
    plan.notes = shortened(std::mem::take(&mut plan.notes));
    plan.notes.extend(plan_notes);
    let mut outputs = Vec::new();
    for (job, stored) in plan.jobs.iter_mut().zip(stored) {
        for (part, info) in stored.parts {
            job.outputs.push((part, 0, outputs.len()));
            outputs.push(info);
        }
    }
    lay_out(&mut plan, outputs, request.max_shard_size, &metadata);
    Ok(plan)
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

/// What a job makes, before it has a file.
struct Stored {
    parts: Vec<(Part, TensorInfo)>,
    layer: Option<Layer>,
}

struct Builder<'a> {
    request: &'a Request,
    tensors: &'a [TensorInfo],
    plan: Plan,
    stored: Vec<Stored>,
    problems: Vec<String>,
    /// Output name → where it came from, for what was transposed or taken out of stacked experts.
    restore: BTreeMap<String, Value>,
}

impl Builder<'_> {
    fn add(&mut self, source: usize, choice: Choice) {
        let info = &self.tensors[source];
        match choice {
            Choice::Quantize(layers) => layers.into_iter().for_each(|l| self.quantize(source, l)),
            Choice::Split { layers, kept } => {
                layers.into_iter().for_each(|l| self.quantize(source, l));
                for part in kept {
                    self.copy(
                        source,
                        part.name,
                        part.view,
                        part.shape,
                        Some("part of stacked experts that are split"),
                    );
                }
            }
            Choice::Rename(parts) => {
                for part in parts {
                    self.copy(
                        source,
                        part.name,
                        part.view,
                        part.shape,
                        Some("belongs to experts that are split"),
                    );
                }
            }
            Choice::Cast => self.cast(source),
            Choice::Keep { reason } => {
                let view = View::contiguous(1, info.elements() as usize);
                self.copy(source, info.name.clone(), view, info.shape.clone(), Some(&reason.to_string()));
            }
        }
    }

    fn quantize(&mut self, source: usize, mut layer: Layer) {
        let info = &self.tensors[source];
        let Some(float) = info.dtype.float() else {
            self.problems.push(format!(
                "{}: {} cannot be quantized; F32, F16 and BF16 weights are accepted, --exclude leaves the layer as it is",
                info.name, info.dtype
            ));
            return;
        };
        let mut reason = None;
        if let Strategy::Group { group_size } = layer.scheme.strategy
            && !(group_size > 0 && layer.view.cols.is_multiple_of(group_size))
        {
            let row = layer.view.cols;
            match self.request.on_mismatch {
                OnMismatch::Refuse => {
                    self.problems.push(mismatch(&layer.name, row, group_size));
                    return;
                }
                OnMismatch::Keep => {
                    let reason = Reason::Mismatch { group_size, row }.to_string();
                    self.copy(source, layer.name, layer.view, layer.shape, Some(&reason));
                    return;
                }
                OnMismatch::Shrink => {
                    let power = 1 << row.trailing_zeros();
                    let shrunk = group_size.checked_ilog2().map_or(1, |n| 1 << n).min(power);
                    layer.scheme.strategy = Strategy::Group { group_size: shrunk };
                    reason = Some(format!(
                        "group size shrunk from {group_size} to {shrunk}: rows have {row} weights"
                    ));
                }
                OnMismatch::Channel => {
                    layer.scheme.strategy = Strategy::Channel;
                    reason =
                        Some(format!("one scale a row: groups of {group_size} do not divide rows of {row}"));
                }
            }
        }
        if let Some(reason) = &reason {
            self.plan.notes.push(format!("{}: {reason}", layer.name));
        }
        let parts = self.request.format.tensors(&layer, float);
        self.remember(source, &layer.name, &layer.view);
        let scheme = layer.scheme;
        let action = describe(&scheme);
        let row = (layer.name.clone(), layer.shape.clone(), action, reason, Some(scheme));
        self.push(source, layer.view, Work::Quantize(scheme), parts, Some(layer), row);
    }

    fn copy(&mut self, source: usize, name: String, view: View, shape: Vec<usize>, reason: Option<&str>) {
        self.remember(source, &name, &view);
        let info = TensorInfo { name: name.clone(), dtype: self.tensors[source].dtype, shape: shape.clone() };
        let row = (name, shape, "kept".to_owned(), reason.map(str::to_owned), None);
        self.push(source, view, Work::Copy, vec![(Part::Codes, info)], None, row);
    }

    fn cast(&mut self, source: usize) {
        let info = &self.tensors[source];
        let Method::Cast(to) = self.request.recipe.method else { return };
        if info.dtype.float().is_none() {
            self.problems.push(format!(
                "{}: {} cannot be cast; F32, F16 and BF16 are accepted, --exclude leaves the tensor as it is",
                info.name, info.dtype
            ));
            return;
        }
        let view = View::contiguous(1, info.elements() as usize);
        let out = TensorInfo { dtype: to.dtype(), ..info.clone() };
        let row = (info.name.clone(), info.shape.clone(), format!("cast to {}", to.dtype()), None, None);
        self.push(source, view, Work::Cast(to), vec![(Part::Codes, out)], None, row);
    }

    fn push(
        &mut self,
        source: usize,
        view: View,
        work: Work,
        parts: Vec<(Part, TensorInfo)>,
        layer: Option<Layer>,
        (name, shape, action, reason, scheme): (String, Vec<usize>, String, Option<String>, Option<Scheme>),
    ) {
        let info = &self.tensors[source];
        self.plan.rows.push(Row {
            name,
            dtype: info.dtype.to_string(),
            shape,
            action,
            reason,
            before: view.elements() * info.dtype.size() as u64,
            after: parts.iter().map(|(_, t)| t.bytes()).sum(),
            scheme,
        });
        let row = self.plan.rows.len() - 1;
        self.plan.jobs.push(Job { source, view, work, outputs: Vec::new(), target: None, row });
        self.stored.push(Stored { parts, layer });
    }

    /// Notes how to put a transposed or split tensor together again.
    fn remember(&mut self, source: usize, name: &str, view: &View) {
        let info = &self.tensors[source];
        if info.name != name || !view.is_contiguous() {
            let entry = json!({"source": info.name, "shape": info.shape, "view": view});
            self.restore.insert(name.to_owned(), entry);
        }
    }

    fn config(&self, config: &Value) -> Value {
        let mut config = config.clone();
        if let Method::Cast(to) = self.request.recipe.method {
            set_dtype(&mut config, to);
            return config;
        }
        let layers: Vec<_> = self.stored.iter().filter_map(|s| s.layer.as_ref()).map(quantized).collect();
        let kept = kept_modules(&self.plan.rows, heads_without_a_tensor(self.tensors, Some(&config)));
        config["quantization_config"] = self.request.format.config(&layers, &kept);
        config
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        let mut ours = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "recipe": self.request.recipe.to_json(),
        });
        if matches!(self.request.recipe.method, Method::Quantize(_)) {
            ours["format"] = self.request.format.name().into();
        }
        if !self.restore.is_empty() {
            ours["restore"] = json!(self.restore);
        }
        ours.sort_all_objects();
        [("format".to_owned(), "pt".to_owned()), ("monoquant".to_owned(), ours.to_string())].into()
    }
}

/// "int4 symmetric, group 128, minmax".
pub fn describe(scheme: &Scheme) -> String {
    let kind = if scheme.symmetric { "symmetric" } else { "asymmetric" };
    format!("int{} {kind}, {}, {}", scheme.bits, scheme.strategy, scheme.observer.name())
}
