//! Jobs and rows of the plan, tensor by tensor.

use super::{
    Job, OnMismatch, Plan, Request, Row, Work,
    config::{kept_modules, quantized, set_dtype},
    describe,
    refusals::mismatch,
};
use crate::{
    formats::Part,
    names::heads_without_a_tensor,
    recipe::{Choice, Layer, Reason},
    scheme::{Method, Scheme, Strategy},
    tensor::{TensorInfo, View},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Groups that are shrunk further become rows.
const LEAST_GROUP: usize = 8;

/// What a job makes, before it has a file.
pub(super) struct Stored {
    pub parts: Vec<(Part, TensorInfo)>,
    pub layer: Option<Layer>,
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

    pub fn config(&self, config: &Value) -> Value {
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

    pub fn metadata(&self) -> BTreeMap<String, String> {
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
