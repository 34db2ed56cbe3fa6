//! What transformers and vLLM refuse, or load wrongly, of what this layout can hold. Each was seen with transformers 5.23
//! and compressed-tensors 0.20, or is a rule of vLLM 0.33.

use super::{super::fused, arguments};
use crate::{
    plan::shortened,
    recipe::{Layer, LayerType},
    scheme::{Scheme, Strategy},
};
use std::collections::BTreeSet;

/// Models whose experts transformers stacks by itself when it loads them.
const STACKED_ON_LOAD: [&str; 4] = ["mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next"];

pub fn notes(layers: &[&Layer], kept: &[String], model_types: &[String]) -> Vec<String> {
    let mut notes: BTreeSet<&str> = layers.iter().flat_map(|l| on_layer(l)).collect();
    let is = |names: &[&str]| model_types.iter().any(|m| names.contains(&m.as_str()));
    let experts: Vec<&&Layer> = layers.iter().filter(|l| is_expert(l)).collect();
    if is(&["gpt_oss"]) && !experts.is_empty() {
        notes.insert("transformers cannot load quantized gpt_oss: it finds no weights for its experts and runs random ones; vLLM loads experts one by one");
    }
    let stacked = !experts.is_empty() && is(&STACKED_ON_LOAD);
    if stacked && experts.iter().any(|l| !l.scheme.packed()) {
        notes.insert("transformers cannot load w8a8 experts of this model (it stacks them, and fails to convert the codes); --preset w8a16 loads");
    }
    if stacked && experts.iter().any(|l| l.scheme.packed() && !l.scheme.symmetric) {
        notes.insert("transformers cannot load asymmetric experts of this model, with dequantize=True neither; symmetric ones load");
    }
    if experts.windows(2).any(|w| differ(w[0], w[1])) {
        notes.insert("transformers decodes all experts by one group of the config: experts of different schemes load without a word and compute wrongly");
    }
    if is(&["t5", "mt5", "umt5", "longt5", "switch_transformers"]) && layers.iter().any(|l| l.scheme.packed())
    {
        notes.insert("transformers' T5 reads the weight of wo itself: packed layers load only with CompressedTensorsConfig(dequantize=True)");
    }
    if layers.windows(2).any(|w| differ(w[0], w[1])) {
        notes.insert("transformers decodes every layer by one scheme when it loads with dequantize=True: mixed schemes compute wrongly that way; without it they load right");
    }
    let mut notes: Vec<String> = notes.into_iter().map(str::to_owned).collect();
    notes.extend(shortened(fused::that_differ(layers, kept, differ)));
    notes
}

/// Whether the config says something else of these layers. Most have the same scheme, which costs nothing to see.
fn differ(a: &Layer, b: &Layer) -> bool {
    a.scheme != b.scheme && arguments(&a.scheme) != arguments(&b.scheme)
}

fn is_expert(layer: &Layer) -> bool {
    layer.module.contains(".experts.")
}

fn on_layer(layer: &Layer) -> Vec<&'static str> {
    let Scheme { bits, symmetric, strategy, .. } = layer.scheme;
    let packed = layer.scheme.packed();
    let mut notes = Vec::new();
    if layer.layer_type == LayerType::Embedding {
        notes.push("transformers (with compressed-tensors up to 0.20) cannot load quantized embeddings; vLLM 0.33 can");
    } else if layer.layer_type != LayerType::Linear {
        notes.push(
            "transformers and vLLM load no quantized convolutions and recurrent layers; monoquant dequantize reads them",
        );
    } else if layer.view.row_stride == 1 && layer.view.cols > 1 && !is_expert(layer) {
        notes.push(
            "layers stored as [in, out] (GPT-2's Conv1D) are written as [out, in]: transformers quantizes no Conv1D and \
             cannot load them; monoquant dequantize restores them",
        );
    }
    match (packed, symmetric) {
        (true, false) => notes.push(
            "transformers with compressed-tensors 0.18 to 0.20 fails on asymmetric pack-quantized weights (zero-point \
             shape) unless loaded with CompressedTensorsConfig(dequantize=True); vLLM loads them",
        ),
        (false, false) => {
            notes.push("vLLM refuses asymmetric int8 weights with quantized inputs; transformers loads them");
        }
        _ => {}
    }
    if let Strategy::Group { group_size } = strategy {
        if !packed {
            notes.push(
                "vLLM refuses w8a8 weights in groups (channel or tensor only); transformers loads them",
            );
        } else if ![32, 64, 128].contains(&group_size) {
            notes.push("vLLM's GPU kernels take groups of 32, 64 or 128 weights only");
        }
    }
    if packed && bits == 8 {
        notes.push("vLLM's CPU engine has no kernel for 8-bit pack-quantized weights; its GPU engine has");
    }
    notes
}
