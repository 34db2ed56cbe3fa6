//! The plan that takes quantized layers from one layout to another: the same codes, scales and zero points.

use crate::{
    coded::{CodedLayer, Layers, layers, qparams, quantization_config},
    error::{Error, Result},
    formats::{OutputFormat, Part, Quantized, module},
    inspect,
    names::{Facts, Kind, heads_without_a_tensor},
    observer::Observer,
    plan::{Folder, Job, Layout, Place, Plan, Row, Work, kept_modules, lay_out, quantized, shortened},
    quantize::{Prepared, Settings, as_directory, destination, finish_preparing, infos},
    reader::{Checkpoint, Source},
    recipe::{Layer, LayerType, Reason},
    scheme::{Activations, Grid, Scheme},
    tensor::{Float, TensorInfo, View},
    validate::mismatches,
    writer::Destination,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path};

/// Plans to write the layers of a quantized checkpoint in other layouts.
pub fn prepare(
    model: &Path,
    formats: &[&'static dyn OutputFormat],
    max_shard_size: u64,
    settings: &Settings,
) -> Result<Prepared> {
    let checkpoint = Checkpoint::open(model)?;
    let suffix = if formats.len() == 1 { formats[0].name() } else { "converted" };
    let mut destination = destination(&checkpoint, settings, suffix);
    if formats.len() > 1 && settings.output.is_none() {
        destination = as_directory(destination);
    }
    prepare_checkpoint(checkpoint, formats, max_shard_size, settings, destination)
}

/// Plans to write the layers of an opened checkpoint in other layouts.
pub fn prepare_checkpoint(
    checkpoint: Checkpoint,
    formats: &[&'static dyn OutputFormat],
    max_shard_size: u64,
    settings: &Settings,
    destination: Destination,
) -> Result<Prepared> {
    let max = matches!(destination, Destination::Directory(_)).then_some(max_shard_size);
    let tensors = infos(&checkpoint);
    let planned = plan(&checkpoint, &tensors, formats, max);
    finish_preparing(checkpoint, tensors, planned, destination, settings, false)
}

struct Conversion<'a> {
    checkpoint: &'a Checkpoint,
    tensors: &'a [TensorInfo],
    source: Source,
    formats: &'a [&'static dyn OutputFormat],
    facts: Facts,
    plan: Plan,
    outputs: Vec<TensorInfo>,
    layers: Vec<Layer>,
    problems: Vec<String>,
}

fn plan(
    checkpoint: &Checkpoint,
    tensors: &[TensorInfo],
    formats: &[&'static dyn OutputFormat],
    max_shard_size: Option<u64>,
) -> Result<Plan> {
    if checkpoint.gguf().is_some() {
        return Err(Error::refused(
            "a GGUF model: its tensors have names and an order of rows of their own, which loaders of these layouts do \
             not know; quantize the model that it was made from",
        ));
    }
    let source = checkpoint.source()?;
    let Layers { coded, rest, activations, .. } = layers(checkpoint, &source)?;
    if coded.is_empty() {
        return Err(Error::refused(
            "no quantized layer found, and so nothing to convert; monoquant quantize makes some",
        ));
    }
    if let Some(config) = quantization_config(checkpoint) {
        let mismatches = mismatches(config, &coded);
        if !mismatches.is_empty() {
            return Err(Error::Refused(mismatches));
        }
    }
    let mut conversion = Conversion {
        checkpoint,
        tensors,
        source,
        formats,
        facts: Facts::new(checkpoint.config(), tensors),
        plan: Plan::default(),
        outputs: Vec::new(),
        layers: Vec::new(),
        problems: Vec::new(),
    };
    let mut steps: Vec<(usize, Option<CodedLayer>)> = rest.into_iter().map(|i| (i, None)).collect();
    steps.extend(coded.into_iter().map(|l| (l.codes, Some(l))));
    steps.sort_by_key(|(i, _)| *i);
    for (source, layer) in steps {
        match layer {
            Some(layer) => conversion.layer(layer)?,
            None => conversion.copy(source),
        }
    }
    if !activations.is_empty() {
        let names = activations.iter().map(|&i| tensors[i].name.as_str()).collect::<Vec<_>>().join(", ");
        conversion.problems.push(format!(
            "{names}: scales of inputs, which only compressed-tensors holds; monoquant dequantize, then quantize"
        ));
    }
    conversion.finish(max_shard_size)
}

impl Conversion<'_> {
    fn layer(&mut self, coded: CodedLayer) -> Result<()> {
        let name = coded.name.clone();
        let (scales, zero_points) = match qparams(&self.source, self.tensors, &coded.coded) {
            Ok(found) => found,
            Err(Error::Refused(mut problems)) => {
                self.problems.append(&mut problems);
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let codes = -(1i32 << (coded.coded.bits - 1))..1 << (coded.coded.bits - 1);
        if let Some(z) = zero_points.iter().find(|&&z| !codes.contains(&z)) {
            self.problems.push(format!("{name}: zero point {z} is no int{} code", coded.coded.bits));
            return Ok(());
        }
        let layer = self.described(&coded, zero_points.iter().all(|&z| z == 0));
        let from = coded.coded.scales.1;
        let mut parts = Vec::new();
        for (folder, format) in self.formats.iter().enumerate() {
            // what runs with int8 inputs can run with float ones; the codes are the same
            let mut layer = layer.clone();
            if format.weight_only() {
                layer.scheme.activations = Activations::Float;
            }
            let own = match coded.coded.layout {
                Layout::Packed | Layout::Int8 => "compressed-tensors",
                Layout::Gptq { less_one: true } => "gptq",
                Layout::Gptq { less_one: false } => "the second version of gptq",
                Layout::Awq => "awq",
            };
            if format.name() == own {
                self.problems.push(format!("{name}: is in the layout of {own} already"));
                continue;
            }
            if let Some(refusal) = format.refuses(&layer) {
                self.problems.push(format!("{name}: {}", refusal.what));
                continue;
            }
            let to = format.scale_dtype(from);
            if let Some(problem) = not_exact(&scales, to) {
                self.problems.push(format!(
                    "{name}: {} stores scales as {}, and {problem}; monoquant dequantize, then quantize --format {}",
                    format.name(),
                    to.dtype(),
                    format.name()
                ));
                continue;
            }
            parts.extend(format.tensors(&layer, to).into_iter().map(|(part, info)| (folder, part, info)));
        }
        let to = self.formats.first().map_or(from, |format| format.scale_dtype(from));
        let mut scheme = layer.scheme;
        if self.formats.iter().all(|format| format.weight_only()) {
            scheme.activations = Activations::Float;
        }
        let action = format!(
            "{} to {}",
            inspect::describe(&coded),
            self.formats.iter().map(|f| f.name()).collect::<Vec<_>>().join(", ")
        );
        let before = coded.parts.iter().map(|&i| self.tensors[i].bytes()).sum();
        let (dtype, shape) = (self.tensors[coded.codes].dtype, coded.shape.clone());
        let view = View::contiguous(coded.coded.rows, coded.coded.cols);
        self.plan.coded.push(coded.coded);
        // every target has this grid: their scales are the same numbers
        let work = Work::Repack(self.plan.coded.len() - 1, Grid { scheme, scale: to });
        let row = Row {
            name,
            dtype: dtype.to_string(),
            shape,
            action,
            reason: None,
            before,
            after: parts.iter().map(|(.., info)| info.bytes()).sum(),
            scheme: Some(scheme),
        };
        self.push(coded.codes, view, work, parts, row);
        self.layers.push(layer);
        Ok(())
    }

    fn copy(&mut self, source: usize) {
        let info = &self.tensors[source];
        let embedding = self.facts.kind(info) == Kind::Embedding;
        let reason = if embedding { Reason::Embedding.to_string() } else { "not quantized".to_owned() };
        let row = Row {
            name: info.name.clone(),
            dtype: info.dtype.to_string(),
            shape: info.shape.clone(),
            action: "kept".into(),
            reason: Some(reason),
            before: info.bytes(),
            after: info.bytes() * self.formats.len() as u64,
            scheme: None,
        };
        let folders = 0..self.formats.len();
        let parts = folders.map(|folder| (folder, Part::Codes, info.clone())).collect();
        let view = View::contiguous(1, info.elements() as usize);
        self.push(source, view, Work::Copy, parts, row);
    }

    fn push(
        &mut self,
        source: usize,
        view: View,
        work: Work,
        parts: Vec<(usize, Part, TensorInfo)>,
        row: Row,
    ) {
        let mut outputs = Vec::new();
        for (folder, part, info) in parts {
            outputs.push(Place { part, grid: 0, file: folder, tensor: self.outputs.len() });
            self.outputs.push(info);
        }
        self.plan.rows.push(row);
        let row = self.plan.rows.len() - 1;
        self.plan.jobs.push(Job { source, view, work, outputs, target: None, input: None, row });
    }

    /// A stored layer in the words of the plan.
    fn described(&self, coded: &CodedLayer, symmetric: bool) -> Layer {
        let info = TensorInfo {
            name: coded.name.clone(),
            dtype: coded.coded.output.dtype(),
            shape: coded.shape.clone(),
        };
        let layer_type = match (self.facts.kind(&info), coded.shape.len()) {
            (Kind::Embedding, _) => LayerType::Embedding,
            (Kind::Lstm, _) => LayerType::Lstm,
            (Kind::Gru, _) => LayerType::Gru,
            (Kind::ConvTransposed, _) => LayerType::ConvTranspose,
            (_, 3) => LayerType::Conv1d,
            (_, 4) => LayerType::Conv2d,
            _ => LayerType::Linear,
        };
        let activations = match coded.coded.layout {
            Layout::Int8 => Activations::DynamicToken,
            _ => Activations::Float,
        };
        let module = module(&coded.name).map(|m| m.trim_end_matches('.')).unwrap_or(&coded.name);
        Layer {
            name: coded.name.clone(),
            module: module.to_owned(),
            source: coded.codes,
            view: View::contiguous(coded.coded.rows, coded.coded.cols),
            shape: coded.shape.clone(),
            layer_type,
            scheme: Scheme {
                bits: coded.coded.bits,
                symmetric,
                strategy: coded.strategy,
                observer: Observer::MinMax,
                activations,
            },
            input: None,
        }
    }

    fn finish(mut self, max_shard_size: Option<u64>) -> Result<Plan> {
        let config = self.checkpoint.config();
        let kept = kept_modules(&self.plan.rows, heads_without_a_tensor(self.tensors, config));
        let layers: Vec<&Layer> = self.layers.iter().collect();
        let described: Vec<Quantized> = self.layers.iter().map(quantized).collect();
        let mut notes = Vec::new();
        let mut metadata = Vec::new();
        for format in self.formats {
            self.problems.extend(format.refuses_together(&described, &kept));
            notes.extend(format.loader_notes(&layers, &kept, &self.facts.model_types));
            let config = config.cloned().map(|mut config| {
                config["quantization_config"] = format.config(&described, &kept);
                config
            });
            let name = if self.formats.len() > 1 { format.name().to_owned() } else { String::new() };
            self.plan.folders.push(Folder { name, config, config_file: format.config_file() });
            metadata.push(self.metadata(*format));
            if format.weight_only() && layers.iter().any(|l| !l.scheme.packed()) {
                notes.push(format!(
                    "{}: inputs, so far quantized while running, stay in floating point",
                    format.name()
                ));
            }
        }
        if !self.problems.is_empty() {
            return Err(Error::Refused(self.problems));
        }
        self.plan.notes = shortened(notes);
        lay_out(&mut self.plan, self.outputs, max_shard_size, metadata);
        Ok(self.plan)
    }

    /// What an earlier run of ours noted, for the new format.
    fn metadata(&self, format: &dyn OutputFormat) -> BTreeMap<String, String> {
        let ours =
            self.checkpoint.metadata().get("monoquant").and_then(|text| serde_json::from_str(text).ok());
        let mut ours: Value = ours.unwrap_or_else(|| json!({"version": env!("CARGO_PKG_VERSION")}));
        if ours.is_object() {
            ours["format"] = format.name().into();
            ours.sort_all_objects();
        }
        [("format".to_owned(), "pt".to_owned()), ("monoquant".to_owned(), ours.to_string())].into()
    }
}

/// The first scale that changes when it is stored as `to`.
fn not_exact(scales: &[u32], to: Float) -> Option<String> {
    let mut bytes = Vec::new();
    let i = scales.iter().position(|&s| {
        bytes.clear();
        to.encode(f32::from_bits(s), &mut bytes);
        to.decode(&bytes).to_bits() != s
    })?;
    Some(format!("scale {i}, {:e}, would change", f32::from_bits(scales[i])))
}
