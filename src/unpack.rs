//! The plan that turns codes back into floats.

mod gguf;

use crate::{
    coded::{CodedLayer, Layers, Origin, layers, quantization_config},
    error::{Error, Result},
    formats::Part,
    plan::{Coded, Folder, Job, Place, Plan, Row, Work, lay_out, set_dtype},
    quantize::{Prepared, Settings, destination, finish_preparing, infos},
    reader::Checkpoint,
    tensor::{Float, TensorInfo, View},
    validate::mismatches,
    writer::Destination,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
};

/// Plans the way back to floats. `dtype` is for every float tensor; by default layers get their scales' dtype.
pub fn prepare(
    model: &Path,
    dtype: Option<Float>,
    saturate: bool,
    max_shard_size: u64,
    settings: &Settings,
) -> Result<Prepared> {
    let checkpoint = Checkpoint::open(model)?;
    let destination = destination(&checkpoint, settings, "dequantized");
    prepare_checkpoint(checkpoint, dtype, saturate, max_shard_size, settings, destination)
}

/// Plans the way back to floats of an opened checkpoint.
pub fn prepare_checkpoint(
    checkpoint: Checkpoint,
    dtype: Option<Float>,
    saturate: bool,
    max_shard_size: u64,
    settings: &Settings,
    destination: Destination,
) -> Result<Prepared> {
    let tensors = infos(&checkpoint);
    let layers = layers(&checkpoint, &checkpoint.source()?)?;
    if let Some(config) = quantization_config(&checkpoint) {
        let mismatches = mismatches(config, &layers.coded);
        if !mismatches.is_empty() {
            return Err(Error::Refused(mismatches));
        }
    }
    let max = matches!(destination, Destination::Directory(_)).then_some(max_shard_size);
    let planned = match checkpoint.gguf() {
        Some(keys) => gguf::plan(checkpoint.tensors(), keys, layers, dtype, max),
        None => plan(&checkpoint, &tensors, layers, dtype, max),
    };
    finish_preparing(checkpoint, tensors, planned, destination, settings, saturate)
}

fn plan(
    checkpoint: &Checkpoint,
    tensors: &[TensorInfo],
    layers: Layers,
    dtype: Option<Float>,
    max_shard_size: Option<u64>,
) -> Result<Plan> {
    if layers.coded.is_empty() {
        return Err(Error::refused(
            "no quantized layer found; accepted: compressed-tensors (pack-quantized or int-quantized), GPTQ, AWQ, GGUF blocks",
        ));
    }
    let Layers { coded, rest, activations, origins, .. } = layers;
    let mut plan = Plan::default();
    let mut outputs = Outputs::default();
    if !activations.is_empty() {
        let names = activations.iter().map(|&i| tensors[i].name.as_str()).collect::<Vec<_>>().join(", ");
        plan.notes.push(format!(
            "scales of activations have no use beside float weights and are left out: {names}"
        ));
    }
    let whole = whole_sources(&coded, &origins);
    let mut steps: Vec<(usize, Option<CodedLayer>)> = rest.into_iter().map(|i| (i, None)).collect();
    steps.extend(coded.into_iter().map(|l| (l.codes, Some(l))));
    steps.sort_by_key(|(i, _)| *i);
    for (source, layer) in steps {
        let info = &tensors[source];
        let name = layer.as_ref().map_or(&info.name, |l| &l.name);
        let origin = layer.as_ref().map_or_else(|| origins.get(name), |l| l.origin.as_ref());
        let origin = origin.filter(|o| whole.contains(&o.source));
        let to = match (&layer, dtype, info.dtype.float()) {
            (Some(l), to, _) => Some(to.unwrap_or(l.coded.output)),
            (None, Some(to), Some(from)) if to != from => Some(to),
            _ => None,
        };
        let shape = layer.as_ref().map_or(&info.shape, |l| &l.shape).clone();
        let out_dtype = to.map_or(info.dtype, Float::dtype);
        let elements: u64 = shape.iter().map(|&d| d as u64).product();
        let target = match origin {
            Some(o) => TensorInfo { name: o.source.clone(), dtype: out_dtype, shape: o.shape.clone() },
            None => TensorInfo { name: name.clone(), dtype: out_dtype, shape: shape.clone() },
        };
        let output = outputs.add(target)?;
        let view = match (&layer, origin) {
            (Some(l), _) => View::contiguous(l.coded.rows, l.coded.cols),
            (None, Some(o)) => View::contiguous(o.view.rows, o.view.cols),
            (None, None) => View::contiguous(1, info.elements() as usize),
        };
        let (work, action, before) = match (&layer, to) {
            (Some(l), Some(to)) => {
                let before = l.parts.iter().map(|&i| tensors[i].bytes()).sum();
                let kind = if l.symmetric { "symmetric" } else { "asymmetric" };
                let action = format!("int{} {kind}, {} to {}", l.coded.bits, l.strategy, to.dtype());
                plan.coded.push(Coded { output: to, ..l.coded.clone() });
                (Work::Dequantize(plan.coded.len() - 1), action, before)
            }
            (_, Some(to)) => (Work::Cast(to), format!("cast to {}", to.dtype()), info.bytes()),
            _ => (Work::Copy, "kept".to_owned(), info.bytes()),
        };
        plan.rows.push(Row {
            name: name.clone(),
            dtype: info.dtype.to_string(),
            shape,
            reason: origin
                .map(|o| format!("back into {}", o.source))
                .or_else(|| (action == "kept").then(|| "not quantized".into())),
            action,
            before,
            after: elements * out_dtype.size() as u64,
            scheme: None,
        });
        let row = plan.rows.len() - 1;
        let target = origin.map(|o| o.view);
        plan.jobs.push(Job {
            source,
            view,
            work,
            outputs: vec![Place { part: Part::Codes, grid: 0, file: 0, tensor: output }],
            target,
            input: None,
            row,
        });
    }
    let config = checkpoint.config().cloned().map(|mut config| {
        if let Some(map) = config.as_object_mut() {
            map.shift_remove("quantization_config");
        }
        if let Some(to) = dtype {
            set_dtype(&mut config, to);
        }
        config
    });
    plan.folders = vec![Folder { config, ..Folder::default() }];
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    lay_out(&mut plan, outputs.tensors, max_shard_size, vec![metadata]);
    Ok(plan)
}

/// Tensors whose parts are all there, so that they can be put together again.
fn whole_sources(coded: &[CodedLayer], origins: &HashMap<String, Origin>) -> HashSet<String> {
    let mut parts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for origin in coded.iter().filter_map(|l| l.origin.as_ref()).chain(origins.values()) {
        let all = origin.shape.iter().map(|&d| d as u64).product();
        parts.entry(&origin.source).or_insert((0, all)).0 += origin.view.elements();
    }
    parts.into_iter().filter(|(_, (found, all))| found == all).map(|(name, _)| name.to_owned()).collect()
}

#[derive(Default)]
struct Outputs {
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl Outputs {
    /// The output of this name; parts of one tensor share it.
    fn add(&mut self, info: TensorInfo) -> Result<usize> {
        match self.by_name.get(&info.name) {
            Some(&i) if self.tensors[i] == info => Ok(i),
            Some(_) => Err(Error::refused(format!("{}: parts of different dtypes or shapes", info.name))),
            None => {
                self.by_name.insert(info.name.clone(), self.tensors.len());
                self.tensors.push(info);
                Ok(self.tensors.len() - 1)
            }
        }
    }
}
