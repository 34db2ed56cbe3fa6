//! Mixtures of GGUF's block types: which type each tensor of a model gets. The choices are llama-quantize's (llama.cpp);
//! where that takes Q5_K or Q5_0, which are not written here, the next larger type is taken.

use crate::{block::Block, reader::gguf::Keys, scheme::Mixture};

/// Why a tensor gets a larger type than most.
pub const MORE_BITS: &str = "more bits, as llama-quantize has it";

/// What becomes of a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Left as it is, and why.
    Keep(&'static str),
    /// Blocks, and why of another type than most.
    Block(Block, Option<String>),
    /// F16, as no block type fits its rows, and why.
    Half(String),
}

/// What the key-values say of a model.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    architecture: String,
    experts: u64,
    layers: u64,
}

impl Facts {
    /// Reads them.
    pub fn new(keys: &Keys) -> Self {
        let architecture = keys.text("general.architecture").unwrap_or_default().to_owned();
        let number = |key: &str| keys.number(&format!("{architecture}.{key}")).unwrap_or(0);
        Facts { experts: number("expert_count"), layers: number("block_count"), architecture }
    }

    /// Models of 70 billion weights with grouped queries, whose attn_v is small.
    fn is_70b(&self) -> bool {
        self.layers == 80 && matches!(self.architecture.as_str(), "llama" | "qwen2")
    }
}

/// Parts of names of matrices that are too small, or used otherwise than as weights, and what they are.
const KEPT: [(&str, &str); 44] = {
    const NORM: &str = "norm";
    const ROUTER: &str = "MoE router";
    const SMALL: &str = "small and sensitive, as llama-quantize has it";
    const CONVOLUTION: &str = "convolution of a state space model";
    const POSITIONS: &str = "positions or token types";
    const MULTIMODAL: &str = "part of an image or audio encoder";
    [
        ("_norm.weight", NORM),
        ("ffn_gate_inp.weight", ROUTER),
        ("ffn_gate_tid2eid.weight", ROUTER),
        ("altup", SMALL),
        ("laurel", SMALL),
        ("per_layer_model_proj", SMALL),
        ("ssm_conv1d", CONVOLUTION),
        ("shortconv.conv.weight", CONVOLUTION),
        ("indexer.k_proj.weight", SMALL),
        ("indexer.q_proj.weight", SMALL),
        ("time_mix_first.weight", SMALL),
        ("time_mix_w0.weight", SMALL),
        ("time_mix_w1.weight", SMALL),
        ("time_mix_w2.weight", SMALL),
        ("time_mix_v0.weight", SMALL),
        ("time_mix_v1.weight", SMALL),
        ("time_mix_v2.weight", SMALL),
        ("time_mix_a0.weight", SMALL),
        ("time_mix_a1.weight", SMALL),
        ("time_mix_a2.weight", SMALL),
        ("time_mix_g1.weight", SMALL),
        ("time_mix_g2.weight", SMALL),
        ("time_mix_decay_w1.weight", SMALL),
        ("time_mix_decay_w2.weight", SMALL),
        ("time_mix_lerp_fused.weight", SMALL),
        ("attn_rel_b.weight", POSITIONS),
        (".position_embd", POSITIONS),
        ("sam.pos_embd", POSITIONS),
        ("sam.neck.", MULTIMODAL),
        ("sam.net_", MULTIMODAL),
        (".rel_pos", POSITIONS),
        (".patch_embd", MULTIMODAL),
        (".patch_merger", MULTIMODAL),
        ("a.rvq.codebook", MULTIMODAL),
        ("mm.a.code_embd", MULTIMODAL),
        // of one architecture, glm5-next
        ("glm5-next:hc_", SMALL),
        ("glm5-next:indexer", SMALL),
        ("glm5-next:ssm_f_", SMALL),
        ("glm5-next:ssm_g_", SMALL),
        ("glm5-next:ssm_beta.weight", SMALL),
        ("glm5-next:attn_kv_a_mqa.weight", SMALL),
        ("glm5-next:attn_k_b.weight", SMALL),
        ("glm5-next:attn_v_b.weight", SMALL),
        // llama-quantize makes these Q8_0, whatever the mixture
        ("glm5-next:attn_q_", SMALL),
    ]
};

/// Why a tensor is not quantized, nor cast, whatever the mixture.
pub fn kept(name: &str, shape: &[usize], facts: &Facts) -> Option<&'static str> {
    // llama.cpp counts no dimensions of 1 in front
    if shape.iter().skip_while(|&&d| d == 1).count() < 2 {
        return Some("norm, bias or other 1-D tensor");
    }
    if !name.ends_with("weight") {
        return Some("not a weight by its name");
    }
    if matches!(name, "position_embd.weight" | "token_types.weight") {
        return Some("positions or token types");
    }
    let found = KEPT.iter().find(|(part, _)| match part.split_once(':') {
        Some((architecture, part)) => facts.architecture == architecture && name.contains(part),
        None => name.contains(part),
    });
    found.map(|(_, why)| *why)
}

/// The number of a layer: 3 of `blk.3.attn_v.weight`.
fn layer(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// The role of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Output,
    Embedding,
    /// Values, or what values are a part of.
    Values,
    AttentionKeys,
    AttentionOutput,
    Down,
    Other,
}

impl Role {
    fn of(name: &str) -> Self {
        let has = |part: &str| name.contains(part);
        match name {
            "output.weight" => Role::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Role::Embedding,
            _ if has("attn_qkv.weight") || has("attn_kv_b.weight") || has("attn_v.weight") => Role::Values,
            _ if has("attn_k.weight") => Role::AttentionKeys,
            _ if has("attn_q.weight") => Role::Other,
            _ if has("attn_output.weight") => Role::AttentionOutput,
            _ if has("ffn_up") || has("ffn_gate") => Role::Other,
            _ if has("ffn_down") => Role::Down,
            _ => Role::Other,
        }
    }
}

/// The first and last eighth of layers, and every third between.
fn more_bits(i: u64, n: u64) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

/// What llama-quantize would take, where it is a type that is not written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Block(Block),
    /// Q5_K.
    Five,
}

/// Decides for every tensor of a model: names and shapes, in the order of the file.
pub fn targets(mixture: Mixture, tensors: &[(&str, &[usize])], facts: &Facts) -> Vec<Target> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    // the order in which llama-quantize counts
    order.sort_by_key(|&i| (layer(tensors[i].0).map_or(0, |n| n.saturating_add(1)), tensors[i].0));
    let mut counters = Counters {
        mixture,
        facts,
        tied: !tensors.iter().any(|(name, _)| *name == "output.weight"),
        values: tensors.iter().filter(|(name, _)| Role::of(name) == Role::Values).count() as u64,
        values_seen: 0,
        downs_seen: 0,
    };
    let mut targets = vec![Target::Keep(""); tensors.len()];
    for i in order {
        let (name, shape) = tensors[i];
        targets[i] = match kept(name, shape, facts) {
            Some(why) => Target::Keep(why),
            None => {
                let row = shape.last().copied().unwrap_or(1);
                fitting(mixture, counters.wanted(name, row), row)
            }
        };
    }
    targets
}

struct Counters<'a> {
    mixture: Mixture,
    facts: &'a Facts,
    /// Whether the embedding is the output head, too.
    tied: bool,
    values: u64,
    values_seen: u64,
    downs_seen: u64,
}

impl Counters<'_> {
    fn wanted(&mut self, name: &str, row: usize) -> Wanted {
        use Mixture::{Q4_K_M, Q4_K_S};
        let (mixture, facts) = (self.mixture, self.facts);
        let usual = mixture.block();
        let falcon = facts.architecture == "falcon";
        let eight = facts.experts == 8;
        let four_bits = matches!(mixture, Q4_K_S | Q4_K_M);
        match Role::of(name) {
            Role::Output => self.head(usual, row, falcon),
            Role::Embedding if self.tied => self.head(usual, row, falcon),
            Role::Values => {
                let i = self.values_seen;
                self.values_seen += 1;
                match mixture {
                    _ if eight => Wanted::Block(Block::Q8_0),
                    Q4_K_M if more_bits(i, self.values) => Wanted::Block(Block::Q6_K),
                    Q4_K_S if i < 4 => Wanted::Five,
                    _ if four_bits && facts.is_70b() => Wanted::Five,
                    _ => Wanted::Block(usual),
                }
            }
            Role::AttentionKeys if eight => Wanted::Block(Block::Q8_0),
            Role::AttentionOutput if eight && !falcon && four_bits => Wanted::Five,
            Role::Down => {
                // experts of a layer are several tensors: their names count, not their order
                let counted = self.downs_seen;
                self.downs_seen += 1;
                let i = if facts.experts > 1 { layer(name).unwrap_or(counted) } else { counted };
                let n = facts.layers;
                match mixture {
                    Q4_K_M if falcon && i < n / 16 => Wanted::Block(Block::Q6_K),
                    Q4_K_M if falcon && more_bits(i, n) => Wanted::Five,
                    Q4_K_M if !falcon && more_bits(i, n) => Wanted::Block(Block::Q6_K),
                    Q4_K_S if !falcon && i < n / 8 => Wanted::Five,
                    _ => Wanted::Block(usual),
                }
            }
            _ => Wanted::Block(usual),
        }
    }

    fn head(&self, usual: Block, row: usize, falcon: bool) -> Wanted {
        let eight_bits = falcon || !row.is_multiple_of(usual.len()) || usual == Block::Q8_0;
        Wanted::Block(if eight_bits { Block::Q8_0 } else { Block::Q6_K })
    }
}

/// The type that rows of this length can have.
fn fitting(mixture: Mixture, wanted: Wanted, row: usize) -> Target {
    let usual = mixture.block();
    let (wanted, mut reason) = match wanted {
        Wanted::Block(block) if block == usual => (block, None),
        Wanted::Block(block) => (block, Some(MORE_BITS.to_owned())),
        Wanted::Five => {
            (Block::Q6_K, Some("llama-quantize takes Q5_K, which is not written; Q6_K holds more".to_owned()))
        }
    };
    if row.is_multiple_of(wanted.len()) {
        return Target::Block(wanted, reason);
    }
    if wanted.len() == 32 || !row.is_multiple_of(32) {
        return Target::Half(format!("rows of {row} weights are no whole blocks of 32"));
    }
    reason = Some(match wanted {
        Block::Q4_K => {
            format!(
                "rows of {row} weights are no whole blocks of 256; llama-quantize takes Q5_0, which is not written"
            )
        }
        _ => format!("rows of {row} weights are no whole blocks of 256"),
    });
    Target::Block(Block::Q8_0, reason)
}

#[cfg(test)]
mod tests;
