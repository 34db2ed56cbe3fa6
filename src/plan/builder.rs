//! Jobs and rows of the plan, tensor by tensor.

use super::{
    Folder, Job, OnMismatch, Plan, Request, Row, Work,
    config::{kept_modules, set_dtype},
    describe,
    refusals::mismatch,
};
use crate::{
    formats::{OutputFormat, Part, Quantized},
    names::heads_without_a_tensor,
    recipe::{Choice, Layer, Reason},
    scheme::{Activations, Grid, Method, Scheme, Strategy},
    tensor::{TensorInfo, View},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Groups that are shrunk further become rows.
const LEAST_GROUP: usize = 8;

/// What a job makes, before it has a file.
pub(super) struct Stored {
    pub parts: Vec<StoredPart>,
    pub layer: Option<Layer>,
}

/// A tensor of the output, and the folder that it goes to.
pub(super) struct StoredPart {
    pub folder: usize,
    pub grid: usize,
    pub part: Part,
    pub info: TensorInfo,
}

pub(super) struct Builder<'a> {
    pub request: &'a Request,
    pub tensors: &'a [TensorInfo],
    pub plan: Plan,
    pub stored: Vec<Stored>,
    pub problems: Vec<String>,
    /// Output name → where it came from, for what was transposed or taken out of stacked experts.
    pub restore: BTreeMap<String, Value>,
}

impl Builder<'_> {
    pub fn add(&mut self, source: usize, choice: Choice) {
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
        if layer.scheme.strategy == Strategy::Tensor && layer.scheme.activations == Activations::Float {
            self.problems.push(format!(
                "{}: int{} weights with float inputs take one scale a channel or group; a whole tensor shares one in \
                 w8a8 only",
                layer.name, layer.scheme.bits
            ));
            return;
        }
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
                    // a scale for every few weights would take more room than it saves
                    let (strategy, what) = match shrunk < LEAST_GROUP {
                        true => (Strategy::Channel, "one scale a row".to_owned()),
                        false => {
                            let what = format!("group size shrunk from {group_size} to {shrunk}");
                            (Strategy::Group { group_size: shrunk }, what)
                        }
                    };
                    layer.scheme.strategy = strategy;
                    reason = Some(format!("{what}: rows have {row} weights"));
                }
                OnMismatch::Channel => {
                    layer.scheme.strategy = Strategy::Channel;
                    reason =
                        Some(format!("one scale a row: groups of {group_size} do not divide rows of {row}"));
                }
            }
        }
        let mut grids: Vec<Grid> = Vec::new();
        let mut actions: Vec<(String, Vec<&str>)> = Vec::new();
        let mut parts = Vec::new();
        for (folder, format) in self.request.formats.iter().enumerate() {
            let mut layer = layer.clone();
            if let (Some(symmetric), false) = (format.usually_symmetric(), self.request.symmetry_stated) {
                layer.scheme.symmetric = symmetric;
            }
            match format.refuses(&layer) {
                Some(refusal) if refusal.shape && self.request.on_mismatch == OnMismatch::Keep => {
                    self.copy(source, layer.name, layer.view, layer.shape, Some(&refusal.what));
                    return;
                }
                Some(refusal) => {
                    self.problems.push(format!("{}: {}", layer.name, refusal.what));
                    continue;
                }
                None => {}
            }
            let grid = Grid { scheme: layer.scheme, scale: format.scale_dtype(float) };
            // formats on the same grid share the codes
            let number = grids.iter().position(|g| *g == grid).unwrap_or_else(|| {
                grids.push(grid);
                grids.len() - 1
            });
            let action = describe(&layer.scheme);
            match actions.iter_mut().find(|(other, _)| *other == action) {
                Some((_, names)) => names.push(format.name()),
                None => actions.push((action, vec![format.name()])),
            }
            let tensors = format.tensors(&layer, grid.scale).into_iter();
            parts.extend(tensors.map(|(part, info)| StoredPart { folder, grid: number, part, info }));
        }
        let Some(first) = grids.first() else { return };
        let scheme = first.scheme;
        if let Some(reason) = &reason {
            self.plan.notes.push(format!("{}: {reason}", layer.name));
        }
        self.remember(source, &layer.name, &layer.view);
        let action = match actions.as_slice() {
            [(only, _)] => only.clone(),
            several => {
                let named = several.iter().map(|(action, names)| format!("{action} ({})", names.join(", ")));
                named.collect::<Vec<_>>().join("; ")
            }
        };
        let row = (layer.name.clone(), layer.shape.clone(), action, reason, Some(scheme));
        self.push(source, layer.view, Work::Quantize(grids), parts, Some(layer), row);
    }

    /// The same tensor for every folder.
    fn everywhere(&self, info: &TensorInfo) -> Vec<StoredPart> {
        let folders = 0..self.folder_count();
        folders.map(|folder| StoredPart { folder, grid: 0, part: Part::Codes, info: info.clone() }).collect()
    }

    fn folder_count(&self) -> usize {
        match self.request.recipe.method {
            Method::Quantize(_) => self.request.formats.len(),
            Method::Cast(_) | Method::Blocks(_) => 1,
        }
    }

    fn copy(&mut self, source: usize, name: String, view: View, shape: Vec<usize>, reason: Option<&str>) {
        self.remember(source, &name, &view);
        let info = TensorInfo { name: name.clone(), dtype: self.tensors[source].dtype, shape: shape.clone() };
        let row = (name, shape, "kept".to_owned(), reason.map(str::to_owned), None);
        self.push(source, view, Work::Copy, self.everywhere(&info), None, row);
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
        self.push(source, view, Work::Cast(to), self.everywhere(&out), None, row);
    }

    fn push(
        &mut self,
        source: usize,
        view: View,
        work: Work,
        parts: Vec<StoredPart>,
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
            after: parts.iter().map(|p| p.info.bytes()).sum(),
            scheme,
        });
        let row = self.plan.rows.len() - 1;
        let input = layer.as_ref().and_then(|l| l.input);
        self.plan.jobs.push(Job { source, view, work, outputs: Vec::new(), target: None, input, row });
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

    /// Modules of Linear weights that stay as they are.
    pub fn kept(&self, config: Option<&Value>) -> Vec<String> {
        kept_modules(&self.plan.rows, heads_without_a_tensor(self.tensors, config))
    }

    pub fn folders(&self, config: Option<&Value>, layers: &[Quantized], kept: &[String]) -> Vec<Folder> {
        if let Method::Cast(to) = self.request.recipe.method {
            let config = config.cloned().map(|mut config| {
                set_dtype(&mut config, to);
                config
            });
            return vec![Folder { config, ..Folder::default() }];
        }
        let folder = |(number, format): (usize, &&'static dyn OutputFormat)| {
            let layers = self.as_in(layers, number);
            let config = config.cloned().map(|mut config| {
                config["quantization_config"] = format.config(&layers, kept);
                config
            });
            let name = if self.request.formats.len() > 1 { format.name() } else { "" };
            Folder { name: name.to_owned(), config, config_file: format.config_file() }
        };
        self.request.formats.iter().enumerate().map(folder).collect()
    }

    /// The layers with the schemes that a format has for them.
    pub fn as_in(&self, layers: &[Quantized], format: usize) -> Vec<Quantized> {
        let usual = self.request.formats[format].usually_symmetric();
        let mut layers = layers.to_vec();
        if let (Some(symmetric), false) = (usual, self.request.symmetry_stated) {
            layers.iter_mut().for_each(|layer| layer.scheme.symmetric = symmetric);
        }
        layers
    }

    pub fn metadata(&self, format: usize) -> BTreeMap<String, String> {
        let mut ours = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "recipe": self.request.recipe.to_json(),
        });
        if matches!(self.request.recipe.method, Method::Quantize(_)) {
            ours["format"] = self.request.formats[format].name().into();
        }
        if !self.restore.is_empty() {
            ours["restore"] = json!(self.restore);
        }
        ours.sort_all_objects();
        [("format".to_owned(), "pt".to_owned()), ("monoquant".to_owned(), ours.to_string())].into()
    }
}
