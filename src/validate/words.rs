//! What loaders of GPTQ and AWQ expect by the config, beside what is stored.

use super::{targets::from_start, texts};
use crate::{coded::CodedLayer, inspect, plan::Layout, scheme::Strategy, tensor::TensorInfo};
use regex::Regex;
use serde_json::Value;

/// Layers that are coded otherwise than the config says.
pub fn mismatches(config: &Value, coded: &[CodedLayer]) -> Vec<String> {
    let mut problems = Vec::new();
    let stated = Config::new(config);
    for layer in coded {
        let module = layer.name.strip_suffix(".weight").unwrap_or(&layer.name);
        let (bits, group_size) = match stated.of(module) {
            Stated::Quantized { bits, group_size } => (bits, group_size),
            Stated::Kept(by) => {
                problems.push(format!("config.json: {module} is quantized, but {by} leaves it out"));
                continue;
            }
        };
        let group_fits = match layer.strategy {
            Strategy::Group { group_size: stored } => group_size == Some(stored as i64),
            _ => matches!(group_size, Some(n) if n == -1 || n == layer.coded.cols as i64),
        };
        let whole_row = group_size == Some(-1) && layer.coded.group_len == layer.coded.cols;
        if bits != Some(layer.coded.bits.into()) || !(group_fits || whole_row) {
            problems.push(format!(
                "config.json: says {} bits and groups of {}; {module} is {}",
                bits.map_or("no".into(), |n| n.to_string()),
                group_size.map_or("no size".into(), |n| n.to_string()),
                inspect::describe(layer)
            ));
        }
    }
    problems
}

/// Mismatches, and Linear layers that loaders would take for quantized.
pub fn config_problems(config: &Value, coded: &[CodedLayer], kept: &[&TensorInfo]) -> Vec<String> {
    let mut problems = mismatches(config, coded);
    let stated = Config::new(config);
    let awq = coded.iter().any(|layer| layer.coded.layout == Layout::Awq);
    for tensor in kept.iter().filter(|t| t.shape.len() == 2 && t.dtype.is_float()) {
        let Some(module) = tensor.name.strip_suffix(".weight") else { continue };
        // only what stands beside quantized layers: blocks, and what is in them
        let beside = module.rsplit_once('.').is_some_and(|(parent, _)| {
            coded.iter().any(|l| l.name.rsplitn(3, '.').nth(2).is_some_and(|other| other == parent))
        });
        if beside && matches!(stated.of(module), Stated::Quantized { .. }) {
            let key = if awq { "modules_to_not_convert" } else { "`dynamic`" };
            problems.push(format!(
                "config.json: {module} is not quantized, and {key} does not say so: loaders expect codes"
            ));
        }
    }
    problems
}

enum Stated {
    Quantized { bits: Option<u64>, group_size: Option<i64> },
    Kept(String),
}

/// A config, with its patterns ready to be asked.
struct Config<'a> {
    bits: Option<u64>,
    group_size: Option<i64>,
    left_out: Vec<&'a str>,
    /// Key, expression, whether it leaves modules out, and what it changes.
    dynamic: Vec<(&'a str, Regex, bool, &'a Value)>,
}

impl<'a> Config<'a> {
    fn new(config: &'a Value) -> Self {
        let entry = |(key, change): (&'a String, &'a Value)| {
            let (leaves_out, text) = match key.strip_prefix("-:") {
                Some(text) => (true, text),
                None => (false, key.strip_prefix("+:").unwrap_or(key)),
            };
            Some((key.as_str(), from_start(text)?, leaves_out, change))
        };
        let dynamic = config.get("dynamic").and_then(Value::as_object).into_iter().flatten();
        Config {
            bits: config.get("bits").and_then(Value::as_u64),
            group_size: config.get("group_size").and_then(Value::as_i64),
            left_out: texts(config, "modules_to_not_convert").collect(),
            dynamic: dynamic.filter_map(entry).collect(),
        }
    }

    /// What is said of a module.
    fn of(&self, module: &str) -> Stated {
        if let Some(name) = self.left_out.iter().find(|name| module.contains(**name)) {
            return Stated::Kept(format!("'{name}' in modules_to_not_convert"));
        }
        let (mut bits, mut group_size) = (self.bits, self.group_size);
        if let Some((key, _, leaves_out, change)) = self.dynamic.iter().find(|d| d.1.is_match(module)) {
            if *leaves_out {
                return Stated::Kept(format!("'{key}' in dynamic"));
            }
            bits = change.get("bits").and_then(Value::as_u64).or(bits);
            group_size = change.get("group_size").and_then(Value::as_i64).or(group_size);
        }
        Stated::Quantized { bits, group_size }
    }
}
