//! What transformers loads wrongly, or not at all, of GPTQ and AWQ checkpoints. Each was seen with transformers 5.23,
//! optimum 2.3 and gptqmodel 7.7.

use crate::recipe::Layer;

/// Where transformers (through optimum) looks for a GPTQ model's layers.
const BLOCKS: [&str; 8] = [
    "model.layers.",
    "model.decoder.layers.",
    "model.language_model.layers.",
    "transformer.h.",
    "gpt_neox.layers.",
    "decoder.layers.",
    "layers.",
    "h.",
];

pub fn notes(format: &str, layers: &[&Layer], model_types: &[String]) -> Vec<String> {
    let mut notes = Vec::new();
    if layers.iter().any(|l| l.module.contains(".experts.")) {
        notes.push(format!(
            "transformers finds no weights for quantized experts in {format} checkpoints, as it stacks experts by itself, \
             and runs random ones without an error; gptqmodel's own loader takes them (tried on Qwen3-MoE), and vLLM \
             expects them so"
        ));
    }
    if layers.iter().any(|l| l.view.row_stride == 1 && l.view.cols > 1 && !l.module.contains(".experts.")) {
        notes.push(format!(
            "transformers cannot load {format} of layers that were stored as [in, out] (GPT-2's Conv1D); gptqmodel's own \
             loader takes them"
        ));
    }
    let elsewhere = layers.iter().find(|l| !BLOCKS.iter().any(|block| l.module.starts_with(block)));
    if let (true, Some(layer)) = (format == "gptq", elsewhere) {
        notes.push(format!(
            "transformers loads GPTQ of text decoders only, with layers in {}; {} lies elsewhere",
            BLOCKS.map(|b| b.trim_end_matches('.')).join(", "),
            layer.module
        ));
    }
    if format == "awq" && model_types.iter().any(|t| t.contains("t5") || t == "switch_transformers") {
        notes.push(
            "transformers' T5 reads the weight of wo itself, which AWQ's layers do not have".to_owned(),
        );
    }
    notes
}
