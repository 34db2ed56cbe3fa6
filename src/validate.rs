//! Whether a quantized checkpoint is whole, finite and loadable.

mod targets;
mod words;

use crate::{
    coded::{CodedLayer, blocks, layers, qparams, quantization_config},
    error::{Error, Result},
    quantize::infos,
    reader::{Checkpoint, Source},
    scheme::Strategy,
    stream::count_not_finite,
    tensor::{Dtype, TensorInfo},
};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;
use targets::Targets;

/// What was looked at, and what is wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Validation {
    /// The path.
    pub model: String,
    /// Quantized layers.
    pub layers: usize,
    /// Other tensors.
    pub tensors: usize,
    /// Whether a config.json was checked.
    pub config: bool,
    /// Which part of a file was read, and what was left.
    pub notes: Vec<String>,
    /// What is wrong; empty is good.
    pub problems: Vec<String>,
}

/// Reads every scale, zero point and float of a checkpoint, and its config.
pub fn validate(model: &Path) -> Result<Validation> {
    let checkpoint = Checkpoint::open(model)?;
    let tensors = infos(&checkpoint);
    let source = checkpoint.source()?;
    let mut validation = Validation {
        model: model.display().to_string(),
        layers: 0,
        tensors: tensors.len(),
        config: checkpoint.config().is_some(),
        notes: checkpoint.notes().to_vec(),
        problems: Vec::new(),
    };
    let found = match layers(&checkpoint, &source) {
        Ok(found) => found,
        Err(Error::Refused(problems)) => {
            validation.problems = problems;
            return Ok(validation);
        }
        Err(e) => return Err(e),
    };
    validation.layers = found.coded.len() + found.blocks.len();
    validation.tensors = found.rest.len();
    if found.coded.is_empty() && found.blocks.is_empty() {
        validation.problems.push("no quantized layer found".into());
    }
    for layer in &found.coded {
        validation.problems.extend(values(&source, &tensors, layer)?);
    }
    for layer in &found.blocks {
        if let Some((count, first)) = blocks::not_finite(&source, layer)? {
            validation.problems.push(format!(
                "{}: the scales of {count} {} blocks are not finite, the first in block {first}",
                layer.name, layer.block
            ));
        }
    }
    for i in found.rest.iter().copied() {
        if let Some((index, count)) = count_not_finite(&source, i, &tensors[i])? {
            let name = &tensors[i].name;
            let values = if count == 1 { "value is" } else { "values are" };
            validation
                .problems
                .push(format!("{name}: {count} {values} not finite, the first at index {index}"));
        }
    }
    if checkpoint.config().is_some() {
        let kept: Vec<&TensorInfo> = found.rest.iter().map(|&i| &tensors[i]).collect();
        match quantization_config(&checkpoint) {
            Some(config) => validation.problems.extend(config_problems(config, &found.coded, &kept)),
            None if checkpoint.is_directory() && !found.coded.is_empty() => {
                validation.problems.push(
                    "config.json has no quantization_config: loaders would take the codes for weights".into(),
                );
            }
            None => {}
        }
    }
    Ok(validation)
}

fn values(source: &Source, tensors: &[TensorInfo], layer: &CodedLayer) -> Result<Vec<String>> {
    let (scales, offsets) = match qparams(source, tensors, &layer.coded) {
        Ok(parameters) => parameters,
        Err(Error::Refused(problems)) => return Ok(problems),
        Err(e) => return Err(e),
    };
    let mut problems = Vec::new();
    let zeros = scales.iter().filter(|&&s| f32::from_bits(s) == 0.0).count();
    if zeros > 0 {
        problems.push(format!("{}: {zeros} scales are zero", layer.name));
    }
    let (low, high) = (-(1 << (layer.coded.bits - 1)), (1 << (layer.coded.bits - 1)) - 1);
    if let Some(i) =
        layer.coded.zero_points.filter(|&i| layer.coded.packed() && tensors[i].dtype != Dtype::I32)
    {
        problems.push(format!(
            "{}: zero points of packed layers must be packed I32, not {}",
            tensors[i].name, tensors[i].dtype
        ));
    }
    if layer.symmetric && offsets.iter().any(|&z| z != 0) {
        problems.push(format!("{}: the config says symmetric, but zero points differ from 0", layer.name));
    }
    if let Some(i) = offsets.iter().position(|z| !(low..=high).contains(z)) {
        problems.push(format!("{}: zero point {i} is {}, outside {low} to {high}", layer.name, offsets[i]));
    }
    Ok(problems)
}

/// The rules of transformers and vLLM that our own configs keep.
fn config_problems(config: &Value, coded: &[CodedLayer], kept: &[&TensorInfo]) -> Vec<String> {
    if of_words(config) {
        return words::config_problems(config, coded, kept);
    }
    let mut problems = Vec::new();
    let status = config.get("quantization_status").and_then(Value::as_str).unwrap_or("missing");
    if status != "compressed" {
        problems.push(format!("config.json: quantization_status is {status}; transformers would load random weights, it must be compressed"));
    }
    let ignored = Targets::new(texts(config, "ignore"));
    let ignores = |module: &str| ignored.contains(module);
    let groups: Vec<&Value> =
        config.get("config_groups").and_then(Value::as_object).map_or(vec![], |g| g.values().collect());
    if groups.is_empty() {
        problems.push("config.json: no config_groups".into());
        return problems;
    }
    let by_class = groups.iter().position(|g| texts(g, "targets").any(|t| t == "Linear"));
    problems.extend(mismatches(config, coded));
    for layer in coded.iter().filter(|l| ignores(l.name.strip_suffix(".weight").unwrap_or(&l.name))) {
        problems.push(format!("config.json: {} is quantized, but on the ignore list", layer.name));
    }
    if by_class.is_some() {
        for tensor in kept.iter().filter(|t| t.shape.len() == 2 && t.dtype.is_float()) {
            let Some(module) = tensor.name.strip_suffix(".weight") else { continue };
            let last = module.rsplit('.').next().unwrap_or(module);
            let lookup = last.contains("embed") || matches!(last, "wte" | "wpe" | "shared");
            if !lookup && !ignores(module) {
                problems.push(format!("config.json: {module} is not quantized, but not on the ignore list: transformers expects codes"));
            }
        }
    }
    problems
}

/// The texts of a list in a config.
fn texts<'a>(config: &'a Value, key: &str) -> impl Iterator<Item = &'a str> {
    config.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// Whether it is a config of GPTQ or AWQ.
fn of_words(config: &Value) -> bool {
    matches!(config.get("quant_method").and_then(Value::as_str), Some("gptq" | "awq"))
}

/// Layers that are coded otherwise than the config says.
pub(crate) fn mismatches(config: &Value, coded: &[CodedLayer]) -> Vec<String> {
    if of_words(config) {
        return words::mismatches(config, coded);
    }
    let mut problems = Vec::new();
    let groups: Vec<&Value> =
        config.get("config_groups").and_then(Value::as_object).map_or(vec![], |g| g.values().collect());
    let by_class = groups.iter().position(|g| texts(g, "targets").any(|t| t == "Linear"));
    let targets: Vec<Targets> = groups.iter().map(|g| Targets::new(texts(g, "targets"))).collect();
    for layer in coded {
        let module = layer.name.strip_suffix(".weight").unwrap_or(&layer.name);
        let named = targets.iter().position(|targets| targets.contains(module));
        let Some(group) = named.or(by_class) else {
            problems.push(format!("config.json: no config group targets {module}"));
            continue;
        };
        let weights = &groups[group]["weights"];
        let stated =
            (weights["num_bits"].as_u64(), weights["strategy"].as_str(), weights["symmetric"].as_bool());
        let stated_size = weights["group_size"].as_u64();
        let size_fits = match layer.strategy {
            Strategy::Group { group_size } => stated_size == Some(group_size as u64),
            _ => true,
        };
        let exactly = stated.1 == Some(layer.strategy.name()) && size_fits;
        // one group a row can be told as groups or as a channel
        let one_group = layer.coded.group_len == layer.coded.cols
            && (stated.1 == Some("channel")
                || (stated.1 == Some("group") && stated_size == Some(layer.coded.cols as u64)));
        let symmetric = layer.symmetric;
        if stated.0 != Some(layer.coded.bits.into()) || !(exactly || one_group) || stated.2 != Some(symmetric)
        {
            problems.push(format!(
                "config.json: group_{group} says {} bits, {}, symmetric {}; {module} is {}",
                stated.0.unwrap_or(0),
                stated.1.unwrap_or("no strategy"),
                stated.2.unwrap_or(false),
                crate::inspect::describe(layer)
            ));
        }
    }
    problems
}
