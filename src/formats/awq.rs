//! AWQ, version GEMM: what transformers (with gptqmodel), vLLM, SGLang and mlx-lm load. 4 bits, inputs in floating point.
//!
//! A module `M` has `M.qweight` I32 `[in, out/8]`, `M.qzeros` I32 `[groups, out/8]` and `M.scales` F16 `[groups, out]`.
//! Nibble i of a word belongs to output 8·c + [0, 2, 4, 6, 1, 3, 5, 7][i].

use super::{
    OutputFormat, Part, Quantized, Refusal, fused,
    gptq::{not_a_packed_linear, part_name, undivided},
    gptqmodel,
};
use crate::{
    packing::ZeroPoints,
    plan::shortened,
    recipe::Layer,
    scheme::{Scheme, Strategy},
    tensor::{Dtype, Float, TensorInfo},
    tiles::group_len,
};
use serde_json::{Value, json};

/// The format.
pub struct Awq;

impl OutputFormat for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn weight_only(&self) -> bool {
        true
    }

    fn scale_dtype(&self, _weights: Float) -> Float {
        Float::F16
    }

    fn usually_symmetric(&self) -> Option<bool> {
        Some(false)
    }

    fn refuses(&self, layer: &Layer) -> Option<Refusal> {
        if let Some(refusal) = not_a_packed_linear("awq", layer) {
            return Some(refusal);
        }
        let Scheme { bits, strategy, .. } = layer.scheme;
        if bits != 4 {
            let what = format!("awq holds 4 bits, not {bits}; --format gptq or compressed-tensors hold 8");
            return Some(Refusal { what, shape: false });
        }
        if !matches!(strategy, Strategy::Group { .. }) {
            let what = format!(
                "awq has groups of one size for all layers, and this one has scales by {strategy}; other groups need other \
                 codes, so quantize with --group-size; --on-mismatch keep or --exclude leaves the layer as it is"
            );
            return Some(Refusal { what, shape: false });
        }
        undivided("awq", layer, 8, 8)
    }

    fn refuses_together(&self, layers: &[Quantized], kept: &[String]) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(pair) = layers.windows(2).find(|w| w[0].scheme.strategy != w[1].scheme.strategy) {
            problems.push(format!(
                "awq has groups of one size for all layers: {} has {}, {} has {}; --format gptq or compressed-tensors mix them",
                pair[0].target, pair[0].scheme.strategy, pair[1].target, pair[1].scheme.strategy
            ));
        }
        for (module, hit) in unwanted_hits(layers, kept) {
            problems.push(format!(
                "awq's config leaves layers out by a part of their names: keeping {module} would leave out {hit}, too; \
                 --include or --exclude both, or --format gptq or compressed-tensors"
            ));
        }
        problems
    }

    fn tensors(&self, layer: &Layer, scale: Float) -> Vec<(Part, TensorInfo)> {
        let (rows, cols) = (layer.view.rows, layer.view.cols);
        let groups = cols / group_len(layer.scheme.strategy, 1, cols).max(1);
        let tensor = |part: &str, dtype, shape| TensorInfo { name: part_name(layer, part), dtype, shape };
        vec![
            (Part::AwqCodes, tensor("qweight", Dtype::I32, vec![cols, rows / 8])),
            (Part::PackedZeroPoints(ZeroPoints::Awq), tensor("qzeros", Dtype::I32, vec![groups, rows / 8])),
            (Part::TransposedScales, tensor("scales", scale.dtype(), vec![groups, rows])),
        ]
    }

    fn config(&self, layers: &[Quantized], kept: &[String]) -> Value {
        let group_size = layers.iter().find_map(|l| match l.scheme.strategy {
            Strategy::Group { group_size } => Some(group_size),
            _ => None,
        });
        let left_out: Vec<&String> = kept.iter().filter(|module| !is_router(module, layers)).collect();
        json!({
            "quant_method": "awq",
            "bits": 4,
            "group_size": group_size.unwrap_or(128),
            "zero_point": true,
            "version": "gemm",
            "modules_to_not_convert": left_out,
        })
    }

    fn loader_notes(&self, layers: &[&Layer], kept: &[String], model_types: &[String]) -> Vec<String> {
        let mut notes = gptqmodel::notes(self.name(), layers, model_types);
        notes.extend(shortened(fused::that_differ(layers, kept, |_, _| false)));
        notes
    }
}

/// A router beside experts: loaders know that it is not quantized, and its name is a part of `gate_proj`.
fn is_router(module: &str, layers: &[Quantized]) -> bool {
    let experts = || layers.iter().any(|l| l.target.contains(".experts."));
    module.ends_with(".gate") && experts()
}

/// Kept modules whose names are found within those of quantized ones.
fn unwanted_hits<'a>(layers: &'a [Quantized], kept: &'a [String]) -> Vec<(&'a str, &'a str)> {
    let hits = kept.iter().filter(|module| !is_router(module, layers)).filter_map(|module| {
        let hit = layers.iter().find(|l| l.target.contains(module.as_str()))?;
        Some((module.as_str(), hit.target.as_str()))
    });
    hits.collect()
}
