//! compressed-tensors: what transformers and vLLM load. `pack-quantized` for weight-only layers, `int-quantized` where
//! inputs are quantized too.
//!
//! A weight `N` becomes `N_packed` I32 `[out, ceil(in·bits/32)]`, `N_scale` `[out, groups]` and `N_shape` I64, and with
//! zero points `N_zero_point` I32 `[ceil(out·bits/32), groups]`, packed along the output axis; or I8 `N` with `N_scale`
//! and I8 `N_zero_point`. Static inputs add `M.input_scale` `[1]`, and I8 `M.input_zero_point` if asymmetric.

mod loaders;

use super::{OutputFormat, Part, Quantized, fused};
use crate::{
    packing::ZeroPoints,
    recipe::Layer,
    scheme::{Activations, Scheme, Strategy},
    tensor::{Dtype, Float, TensorInfo},
    tiles::group_len,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The version of the layout that the config claims.
pub const VERSION: &str = "0.17.0";
/// Suffix of packed codes.
pub const PACKED: &str = "_packed";
/// Suffix of scales.
pub const SCALE: &str = "_scale";
/// Suffix of zero points.
pub const ZERO_POINT: &str = "_zero_point";
/// Suffix of the original shape.
pub const SHAPE: &str = "_shape";

/// The format.
pub struct CompressedTensors;

impl OutputFormat for CompressedTensors {
    fn name(&self) -> &'static str {
        "compressed-tensors"
    }

    fn tensors(&self, layer: &Layer, scale: Float) -> Vec<(Part, TensorInfo)> {
        let Layer { name, view, shape, scheme, .. } = layer;
        let groups = view.cols / group_len(scheme.strategy, 1, view.cols).max(1);
        let scale_shape = match scheme.strategy {
            Strategy::Tensor => vec![1],
            _ => vec![view.rows, groups],
        };
        let tensor =
            |suffix: &str, dtype, shape| TensorInfo { name: format!("{name}{suffix}"), dtype, shape };
        let mut parts = vec![(Part::Scales, tensor(SCALE, scale.dtype(), scale_shape.clone()))];
        if !scheme.packed() {
            parts.push((Part::Codes, tensor("", Dtype::I8, shape.clone())));
            if !scheme.symmetric {
                parts.push((Part::ZeroPoints, tensor(ZERO_POINT, Dtype::I8, scale_shape)));
            }
            if let Activations::StaticTensor { symmetric } = scheme.activations {
                let dot = if layer.module.is_empty() { "" } else { "." };
                let input = |suffix, dtype| {
                    let name = format!("{}{dot}input{suffix}", layer.module);
                    TensorInfo { name, dtype, shape: vec![1] }
                };
                parts.push((Part::InputScale, input(SCALE, scale.dtype())));
                if !symmetric {
                    parts.push((Part::InputZeroPoint, input(ZERO_POINT, Dtype::I8)));
                }
            }
            return parts;
        }
        let words = |n: usize| (n * scheme.bits as usize).div_ceil(32);
        parts.push((Part::Codes, tensor(PACKED, Dtype::I32, vec![view.rows, words(view.cols)])));
        parts.push((Part::Shape, tensor(SHAPE, Dtype::I64, vec![shape.len()])));
        if !scheme.symmetric {
            let rows = words(if scheme.strategy == Strategy::Tensor { 1 } else { view.rows });
            parts.push((
                Part::PackedZeroPoints(ZeroPoints::Rows),
                tensor(ZERO_POINT, Dtype::I32, vec![rows, groups]),
            ));
        }
        parts
    }

    fn config(&self, layers: &[Quantized], kept: &[String]) -> Value {
        let mut schemes: Vec<(Scheme, Vec<&Quantized>)> = Vec::new();
        for layer in layers {
            // only what the config can say distinguishes groups: not the observer
            match schemes.iter_mut().find(|(s, _)| arguments(s) == arguments(&layer.scheme)) {
                Some((_, members)) => members.push(layer),
                None => schemes.push((layer.scheme, vec![layer])),
            }
        }
        // the largest group is meant by class and comes last: transformers takes the first group that matches
        schemes.sort_by_key(|(_, members)| members.iter().filter(|m| m.linear).count());
        let last = schemes.len().saturating_sub(1);
        let groups: serde_json::Map<_, _> = schemes
            .iter()
            .enumerate()
            .map(|(i, (scheme, members))| {
                let by_class = i == last;
                let named = members
                    .iter()
                    .filter(|m| !(by_class && m.linear))
                    .map(|m| format!("re:{}", fused::pattern(&m.target)));
                let mut targets: Vec<String> = named.collect();
                if by_class && members.iter().any(|m| m.linear) {
                    targets.push("Linear".into());
                }
                let (weights, inputs) = arguments(scheme);
                let group = json!({
                    "targets": targets,
                    "format": layout(scheme),
                    "weights": weights,
                    "input_activations": inputs,
                    "output_activations": null,
                });
                (format!("group_{i}"), group)
            })
            .collect();
        let formats: BTreeSet<_> = schemes.iter().map(|(s, _)| layout(s)).collect();
        let format = if formats.len() == 1 { formats.first().copied() } else { Some("mixed-precision") };
        json!({
            "quant_method": "compressed-tensors",
            "version": VERSION,
            "quantization_status": "compressed",
            "format": format,
            "config_groups": groups,
            "ignore": kept,
            "kv_cache_scheme": null,
            "global_compression_ratio": null,
            "transform_config": {},
        })
    }

    fn loader_notes(&self, layers: &[&Layer], kept: &[String], model_types: &[String]) -> Vec<String> {
        loaders::notes(layers, kept, model_types)
    }
}

fn layout(scheme: &Scheme) -> &'static str {
    if scheme.packed() { "pack-quantized" } else { "int-quantized" }
}

/// The config's entries for weights and for inputs.
fn arguments(scheme: &Scheme) -> (Value, Value) {
    let mut weights = json!({
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": scheme.strategy.name(),
        "dynamic": false,
    });
    if let Strategy::Group { group_size } = scheme.strategy {
        weights["group_size"] = group_size.into();
    }
    if !scheme.symmetric {
        weights["zp_dtype"] = "torch.int8".into();
    }
    let inputs = match scheme.activations {
        Activations::Float => Value::Null,
        Activations::DynamicToken => {
            json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true})
        }
        Activations::StaticTensor { symmetric } => {
            let mut inputs = json!({"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": "tensor",
                                    "dynamic": false});
            if !symmetric {
                inputs["zp_dtype"] = "torch.int8".into();
            }
            inputs
        }
    };
    (weights, inputs)
}
