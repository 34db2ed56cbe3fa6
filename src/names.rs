//! What a tensor's name, its shape and the model's config say about it.

use crate::tensor::TensorInfo;
use serde_json::Value;
use std::collections::BTreeSet;

/// What a tensor is, as far as its name and shape tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A matrix `[out, in]`.
    Linear,
    /// A matrix stored as `[in, out]`.
    LinearTransposed,
    /// The layer that yields logits over the vocabulary.
    Head,
    /// Decides which experts run.
    Router,
    /// A lookup table.
    Embedding,
    /// A matrix of a recurrent layer with four gates, or one.
    Lstm,
    /// A matrix of a recurrent layer with three gates.
    Gru,
    /// `[out, in, kh, kw]`.
    Conv2d,
    /// Convolution over one dimension.
    Conv1d,
    /// Convolution whose weight is stored as `[in, out, …]`.
    ConvTransposed,
    /// A weight of so many dimensions.
    Dimensions(usize),
    /// At most one dimension.
    Vector,
    /// Several dimensions, but a name that no layer's weight has.
    Other,
}

/// What the config says that the choice depends on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// `model_type` of the model, then of its nested parts.
    pub(crate) model_types: Vec<String>,
    /// Width of the text model.
    pub(crate) hidden: Option<usize>,
    /// Width that experts see where it is not the model's (Nemotron-H).
    pub(crate) latent: Option<usize>,
    /// DBRX: experts, and the width of one.
    pub(crate) dbrx: Option<(usize, usize)>,
    /// Whether embedding and head share a weight.
    pub(crate) tied: bool,
    vocab: Vec<usize>,
    conv1d: bool,
    /// Modules of GRUs.
    grus: BTreeSet<String>,
}

/// Where configs keep the text model's part.
const TEXT_PARTS: [&str; 4] = ["text_config", "llm_config", "language_config", "decoder_config"];

/// Models built with `transformers.pytorch_utils.Conv1D`, which stores `[in, out]`: found by
/// `grep 'Conv1D('` over transformers 5.23's models. GPT-BigCode and GPT-J use Linear.
const CONV1D_MODELS: [&str; 6] =
    ["gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"];
const CONV1D_NAMES: [&str; 4] = ["c_attn", "q_attn", "c_fc", "c_proj"];

/// Heads that share an embedding's weight and so may be missing from the file, by the embedding's name: from
/// `_tied_weights_keys` in transformers 5.23. `lm_head` needs no row.
const TIED_HEADS: [(&str, &[&str]); 9] = [
    (
        ".word_embeddings.weight",
        &[
            "cls.predictions.decoder",
            "predictions.decoder",
            "lm_head.decoder",
            "generator_lm_head",
            "vocab_projector",
            "mlm_score.decoder",
        ],
    ),
    (
        "decoder.embed_tokens.weight",
        &["proj_out", "output_projection", "decoder.output_projection", "lm_head.out_proj"],
    ),
    ("biogpt.embed_tokens.weight", &["output_projection"]),
    ("embeddings.tok_embeddings.weight", &["decoder"]),
    ("transformer.embeddings.weight", &["pred_layer.proj"]),
    ("transformer.word_embedding.weight", &["lm_loss"]),
    ("embed_in.weight", &["embed_out"]),
    ("rwkv.embeddings.weight", &["head"]),
    ("git.embeddings.word_embeddings.weight", &["output"]),
];

/// Modules of output heads that the model may have without a tensor of their own in the file.
pub(crate) fn heads_without_a_tensor(tensors: &[TensorInfo], config: Option<&Value>) -> Vec<String> {
    let mut heads = vec!["lm_head".to_owned()];
    let untied = config.and_then(|c| c.get("tie_word_embeddings")) == Some(&Value::Bool(false));
    if !untied {
        let rows =
            TIED_HEADS.iter().filter(|(embedding, _)| tensors.iter().any(|t| t.name.ends_with(embedding)));
        heads.extend(rows.flat_map(|(_, heads)| heads.iter().map(|h| (*h).to_owned())));
    }
    heads.retain(|head| !tensors.iter().any(|t| t.name.strip_suffix(".weight") == Some(head)));
    heads
}

impl Facts {
    pub(crate) fn new(config: Option<&Value>, tensors: &[TensorInfo]) -> Self {
        let grus = grus(tensors);
        let Some(config) = config else {
            return Facts {
                grus,
                vocab: embedding_rows(tensors),
                conv1d: looks_like_conv1d(tensors),
                ..Facts::default()
            };
        };
        let texts = TEXT_PARTS.iter().filter_map(|key| config.get(key));
        // The text model's own numbers first: those of the whole may mean something else.
        let parts: Vec<&Value> = texts.chain([config]).collect();
        let number = |key: &str| {
            let found = parts.iter().find_map(|part| part.get(key)?.as_u64());
            found.and_then(|n| usize::try_from(n).ok())
        };
        let nested = TEXT_PARTS.iter().chain(&["decoder", "thinker_config"]);
        let model_types: Vec<String> = [Some(config)]
            .into_iter()
            .chain(nested.map(|key| config.get(key)))
            .filter_map(|part| part?.get("model_type")?.as_str().map(str::to_owned))
            .collect();
        let thinker = config.get("thinker_config").and_then(|t| t.get("text_config"));
        let mut vocab: Vec<usize> = parts
            .iter()
            .copied()
            .chain(thinker)
            .filter_map(|part| usize::try_from(part.get("vocab_size")?.as_u64()?).ok())
            .collect();
        if vocab.is_empty() {
            vocab = embedding_rows(tensors);
        }
        let conv1d = if model_types.is_empty() {
            looks_like_conv1d(tensors)
        } else {
            model_types.iter().any(|m| CONV1D_MODELS.contains(&m.as_str()))
        };
        let ffn = |key: &str| {
            let n = config.get("ffn_config")?.get(key)?.as_u64()?;
            usize::try_from(n).ok()
        };
        Facts {
            hidden: number("hidden_size").or_else(|| number("d_model")),
            latent: number("moe_latent_size"),
            dbrx: ffn("moe_num_experts").zip(ffn("ffn_hidden_size")),
            tied: parts.iter().any(|part| part.get("tie_word_embeddings") == Some(&Value::Bool(true))),
            model_types,
            vocab,
            conv1d,
            grus,
        }
    }

    /// What this tensor is.
    pub(crate) fn kind(&self, tensor: &TensorInfo) -> Kind {
        let shape = &tensor.shape;
        if shape.len() < 2 {
            return Kind::Vector;
        }
        let (module, parameter) = tensor.name.rsplit_once('.').unwrap_or(("", &tensor.name));
        if shape.len() == 2 && is_lstm(parameter) {
            return if self.grus.contains(module) { Kind::Gru } else { Kind::Lstm };
        }
        if parameter != "weight" {
            return Kind::Other;
        }
        let components: Vec<&str> = module.split('.').collect();
        let last = components.last().copied().unwrap_or_default();
        match shape.len() {
            2 => self.matrix(&components, last, shape[0]),
            3 | 4 if ["deconv", "transpose"].iter().any(|t| module.contains(t)) => Kind::ConvTransposed,
            3 => Kind::Conv1d,
            4 => Kind::Conv2d,
            n => Kind::Dimensions(n),
        }
    }

    fn matrix(&self, components: &[&str], last: &str, rows: usize) -> Kind {
        if self.is_head(components, last, rows) {
            Kind::Head
        } else if is_router(components, last) {
            Kind::Router
        } else if is_embedding(last) {
            Kind::Embedding
        } else if self.conv1d && CONV1D_NAMES.contains(&last) {
            Kind::LinearTransposed
        } else {
            Kind::Linear
        }
    }

    fn is_head(&self, components: &[&str], last: &str, rows: usize) -> bool {
        // Names that other layers have too, so the number of rows decides. Gathered from the Linears with
        // vocab_size outputs and from `_tied_weights_keys` in transformers 5.23.
        const MAYBE: [&str; 10] = [
            "output",
            "head",
            "decoder",
            "proj_out",
            "output_projection",
            "vocab_projector",
            "ctc_head",
            "out_proj",
            "lm_loss",
            "proj",
        ];
        components.iter().any(|c| c.ends_with("lm_head"))
            || ["embed_out", "unembed"].contains(&last)
            || (MAYBE.contains(&last) && self.vocab.contains(&rows))
    }
}

/// Whether this is torch's name for a matrix of a recurrent layer: `weight_ih_l0`, `weight_hh_l1_reverse`, …
pub(crate) fn is_lstm(parameter: &str) -> bool {
    let rest = ["weight_ih_l", "weight_hh_l", "weight_hr_l"]
        .iter()
        .find_map(|prefix| parameter.strip_prefix(prefix));
    rest.is_some_and(|rest| {
        let layer = rest.strip_suffix("_reverse").unwrap_or(rest);
        !layer.is_empty() && layer.bytes().all(|b| b.is_ascii_digit())
    })
}

/// Recurrent modules whose hidden matrix `[gates·hidden, hidden]` has three gates.
fn grus(tensors: &[TensorInfo]) -> BTreeSet<String> {
    let three =
        tensors.iter().filter(|t| matches!(t.shape[..], [rows, cols] if Some(rows) == cols.checked_mul(3)));
    let hidden = three.filter_map(|t| t.name.rsplit_once('.').or(Some(("", &t.name))));
    hidden.filter(|(_, name)| name.starts_with("weight_hh_l")).map(|(module, _)| module.to_owned()).collect()
}

fn is_router(components: &[&str], last: &str) -> bool {
    // Blocks in which `gate` picks experts; elsewhere (RWKV's attention) it is an ordinary projection.
    const BLOCKS: [&str; 5] = ["mlp", "ffn", "feed_forward", "feedforward", "mixer"];
    let parent_of = |name: &str| {
        let at = components.iter().rposition(|c| *c == name)?;
        components.get(at.checked_sub(1)?).copied()
    };
    let picks = |parent: &str| BLOCKS.contains(&parent) || parent.contains("moe");
    // `gate.wg` is HunYuan's.
    let is_gate = last == "gate" || components.ends_with(&["gate", "wg"]);
    components.contains(&"router")
        || last == "shared_expert_gate"
        || (is_gate && parent_of("gate").is_some_and(picks))
}

fn is_embedding(last: &str) -> bool {
    const NAMES: [&str; 6] = ["wte", "wpe", "shared", "emb", "codebook", "word_embedding"];
    // Linear layers next to embeddings: `embedding_projection`, `embed_proj`, `entity_embedding_dense`, ….
    const LINEAR: [&str; 4] = ["proj", "dense", "mapping", "transform"];
    NAMES.contains(&last)
        || last.ends_with("_emb")
        || last.ends_with("relative_attention_bias")
        // SAM's `mask_tokens`, `iou_token`, …: embeddings with few rows.
        || last.ends_with("_token")
        || last.ends_with("_tokens")
        || (last.contains("embed") && !LINEAR.iter().any(|w| last.contains(w)))
}

/// Number of rows of the largest token embedding: the vocabulary, when no config says it.
fn embedding_rows(tensors: &[TensorInfo]) -> Vec<usize> {
    const TOKENS: [&str; 7] =
        ["embed_tokens", "tok_embeddings", "word_embeddings", "wte", "embed_in", "tokens_embed", "shared"];
    let rows = tensors.iter().filter_map(|t| {
        let module = t.name.strip_suffix(".weight")?;
        let last = module.rsplit('.').next()?;
        (t.shape.len() == 2 && TOKENS.contains(&last)).then(|| t.shape[0])
    });
    rows.max().into_iter().collect()
}

/// Without a config, the fused attention projection tells: it has three times as many outputs as inputs.
fn looks_like_conv1d(tensors: &[TensorInfo]) -> bool {
    tensors.iter().any(|t| {
        let fused = t.name.ends_with(".c_attn.weight");
        fused && matches!(t.shape[..], [rows, cols] if cols > rows)
    })
}
