//! GPTQ, version 1: what transformers (with gptqmodel), vLLM and SGLang load. Symmetric, 4 or 8 bits, inputs in floating
//! point.
//!
//! A module `M` has `M.qweight` I32 `[in·bits/32, out]` (neighbours along the input in a word, lowest bits first),
//! `M.scales` F16 `[groups, out]`, `M.qzeros` I32 `[groups, out·bits/32]`, which store one less than the zero point, and
//! `M.g_idx` I32 `[in]`, the group of every input.

use super::{OutputFormat, Part, Quantized, Refusal, fused, gptqmodel};
use crate::{
    packing::ZeroPoints,
    plan::shortened,
    recipe::{Layer, LayerType},
    scheme::{Scheme, Strategy},
    tensor::{Dtype, Float, TensorInfo},
    tiles::group_len,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// What follows a module's name and dot.
pub const PARTS: [&str; 4] = ["qweight", "qzeros", "scales", "g_idx"];

/// The format.
pub struct Gptq;

impl OutputFormat for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn weight_only(&self) -> bool {
        true
    }

    fn scale_dtype(&self, _weights: Float) -> Float {
        Float::F16
    }

    fn refuses(&self, layer: &Layer) -> Option<Refusal> {
        if let Some(refusal) = not_a_packed_linear("gptq", layer) {
            return Some(refusal);
        }
        let Scheme { bits, symmetric, strategy, .. } = layer.scheme;
        if !symmetric {
            return Some(Refusal {
                what: "gptq holds symmetric codes only (version 1 stores zero points less one, so that 0 has no place, \
                       and vLLM loads no others); awq and compressed-tensors hold asymmetric ones"
                    .into(),
                shape: false,
            });
        }
        if strategy == Strategy::Tensor {
            return Some(Refusal { what: "gptq has a scale a channel or a group".into(), shape: false });
        }
        undivided("gptq", layer, (32 / bits) as usize, (32 / bits) as usize)
    }

    fn refuses_together(&self, layers: &[Quantized], _kept: &[String]) -> Vec<String> {
        let unnamed = layers.iter().filter(|l| l.target.is_empty());
        unnamed.map(|_| "gptq names modules; a bare `weight` has none".to_owned()).collect()
    }

    fn tensors(&self, layer: &Layer, scale: Float) -> Vec<(Part, TensorInfo)> {
        let (rows, cols, bits) = (layer.view.rows, layer.view.cols, layer.scheme.bits as usize);
        let groups = cols / group_len(layer.scheme.strategy, 1, cols).max(1);
        let tensor = |part: &str, dtype, shape| TensorInfo { name: part_name(layer, part), dtype, shape };
        let zero_points = Part::PackedZeroPoints(ZeroPoints::Gptq { less_one: true });
        vec![
            (Part::TransposedCodes, tensor("qweight", Dtype::I32, vec![cols * bits / 32, rows])),
            (zero_points, tensor("qzeros", Dtype::I32, vec![groups, rows * bits / 32])),
            (Part::TransposedScales, tensor("scales", scale.dtype(), vec![groups, rows])),
            (Part::GroupIndex, tensor("g_idx", Dtype::I32, vec![cols])),
        ]
    }

    fn config(&self, layers: &[Quantized], kept: &[String]) -> Value {
        let usual = usual_scheme(layers);
        let mut dynamic: Map<String, Value> = Map::new();
        let is_head = |module: &str| module.rsplit('.').next() == Some("lm_head");
        // loaders take every Linear layer but the head for quantized
        for module in kept.iter().filter(|module| !is_head(module)) {
            dynamic.insert(format!("-:^{}", fused::pattern(module)), json!({}));
        }
        for layer in layers.iter().filter(|l| Some(arguments(&l.scheme)) != usual) {
            let (bits, group_size) = arguments(&layer.scheme);
            let entry = json!({"bits": bits, "group_size": group_size});
            dynamic.insert(format!("+:^{}", fused::pattern(&layer.target)), entry);
        }
        let (bits, group_size) = usual.unwrap_or((4, 128));
        let mut config = json!({
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group_size,
            "desc_act": false,
            "sym": true,
            "lm_head": layers.iter().any(|l| is_head(&l.target)),
            "checkpoint_format": "gptq",
            "pack_dtype": "int32",
        });
        if dynamic.keys().any(|key| key.starts_with('-')) {
            // transformers (through optimum) reads no `dynamic`: it goes by the ends of names
            config["modules_in_block_to_quantize"] = json!([name_ends(layers, kept)]);
        }
        if !dynamic.is_empty() {
            config["dynamic"] = dynamic.into();
        }
        config
    }

    fn config_file(&self) -> Option<&'static str> {
        Some("quantize_config.json")
    }

    fn loader_notes(&self, layers: &[&Layer], kept: &[String], model_types: &[String]) -> Vec<String> {
        let mut notes = gptqmodel::notes(self.name(), layers, model_types);
        let sizes = |l: &&Layer| match l.scheme.strategy {
            Strategy::Group { group_size } => ![32, 64, 128].contains(&group_size),
            _ => false,
        };
        if layers.iter().any(sizes) {
            notes.push(
                "vLLM's GPU kernels take groups of 32, 64 or 128 weights only, or whole rows".to_owned(),
            );
        }
        if layers.iter().any(|l| l.scheme.bits == 8) {
            notes.push("vLLM's CPU engine has no kernel for 8-bit GPTQ; its GPU engine has".to_owned());
        }
        if layers.windows(2).any(|w| arguments(&w[0].scheme) != arguments(&w[1].scheme)) {
            notes.push(
                "transformers reads no `dynamic` in GPTQ's config and takes all layers for alike: mixed bits or group \
                 sizes load in vLLM and gptqmodel only"
                    .to_owned(),
            );
        }
        let differ = |a: &Layer, b: &Layer| arguments(&a.scheme) != arguments(&b.scheme);
        notes.extend(shortened(fused::that_differ(layers, kept, differ)));
        notes
    }
}

/// Ends of names that all quantized layers have and no kept one: short where that is possible.
fn name_ends(layers: &[Quantized], kept: &[String]) -> Vec<String> {
    let end = |name: &str| -> String {
        let start = name.rmatch_indices('.').nth(1).map_or(0, |(i, _)| i + 1);
        name[start..].to_owned()
    };
    let short: BTreeSet<String> = layers.iter().map(|l| end(&l.target)).collect();
    if kept.iter().any(|module| short.iter().any(|end| module.ends_with(end.as_str()))) {
        return layers.iter().map(|l| l.target.clone()).collect();
    }
    short.into_iter().collect()
}

/// Bits and group size, as configs say them.
fn arguments(scheme: &Scheme) -> (u32, i64) {
    let group_size = match scheme.strategy {
        Strategy::Group { group_size } => group_size as i64,
        _ => -1,
    };
    (scheme.bits, group_size)
}

/// What most layers have; of equals, what came first.
fn usual_scheme(layers: &[Quantized]) -> Option<(u32, i64)> {
    let mut counts: Vec<((u32, i64), usize)> = Vec::new();
    for layer in layers {
        let key = arguments(&layer.scheme);
        match counts.iter_mut().find(|(k, _)| *k == key) {
            Some((_, n)) => *n += 1,
            None => counts.push((key, 1)),
        }
    }
    counts.into_iter().rev().max_by_key(|(_, n)| *n).map(|(key, _)| key)
}

/// The name of a module's part.
pub(super) fn part_name(layer: &Layer, part: &str) -> String {
    if layer.module.is_empty() { part.to_owned() } else { format!("{}.{part}", layer.module) }
}

/// Why a format of Linear layers with float inputs cannot hold this one.
pub(super) fn not_a_packed_linear(format: &str, layer: &Layer) -> Option<Refusal> {
    let refusal = |what: String| Some(Refusal { what, shape: false });
    if layer.layer_type != LayerType::Linear {
        return refusal(format!(
            "{format} holds linear layers only, and this is one of type {}; --layer-types linear leaves it out",
            layer.layer_type
        ));
    }
    if !layer.scheme.packed() {
        return refusal(format!(
            "{format} holds weights whose inputs stay in floating point; --preset w8a16 fits, \
             --format compressed-tensors holds w8a8"
        ));
    }
    if super::module(&layer.name).is_none() {
        return refusal(format!(
            "{format} names modules, and this weight is not called `weight`; --exclude leaves it out"
        ));
    }
    None
}

/// Why words of codes and zero points do not come out even.
pub(super) fn undivided(format: &str, layer: &Layer, inputs: usize, outputs: usize) -> Option<Refusal> {
    let (rows, cols) = (layer.view.rows, layer.view.cols);
    if rows.is_multiple_of(outputs) && cols.is_multiple_of(inputs) {
        return None;
    }
    let what = format!(
        "{format} packs {outputs} outputs and {inputs} inputs a word, which do not divide its {rows} outputs and {cols} \
         inputs; --on-mismatch keep or --exclude leaves it out"
    );
    Some(Refusal { what, shape: true })
}
