//! The table of stacked experts.
//!
//! Every row was read from the modeling code of transformers 5.23.0 (the class is named beside it) and from its
//! `conversion_mapping.py`, which says how checkpoints differ from it. Models that are missing were not
//! verified; their stacked experts are kept as they are.

/// How the matrices of one expert lie in memory.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Order {
    /// `[experts, out, in]`.
    OutIn,
    /// `[experts, in, out]`.
    InOut,
    /// Either; the axis as long as the config's hidden_size tells which.
    Either,
    /// `[experts·out, in]`, in two dimensions.
    FlatOutIn,
    /// `[experts·in, out]`, in two dimensions.
    FlatInOut,
    /// `[experts, out]`.
    Bias,
}

/// Which side of the matrix is as wide as the model.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Hidden {
    In,
    Out,
}

/// How two projections share a tensor.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Cut {
    /// First all outputs of the one, then all of the other.
    Halves,
    /// Output by output in turn.
    Interleaved,
}

/// One stacked tensor of a family.
pub(super) struct Row {
    /// End of its name.
    pub(super) tail: &'static str,
    /// What stands for the tail in the name of the experts' module.
    pub(super) module: &'static str,
    pub(super) order: Order,
    pub(super) hidden: Hidden,
    pub(super) cut: Cut,
    /// Names of the projections that share it.
    pub(super) parts: &'static [&'static str],
}

/// Models that lay out their experts alike.
pub(super) struct Family {
    pub(super) models: &'static [&'static str],
    pub(super) rows: &'static [Row],
}

const GATE_UP: &[&str] = &["gate_proj", "up_proj"];
const DOWN: &[&str] = &["down_proj"];
// Mixtral's names for the same, which the checkpoints of its relatives use too.
const W13: &[&str] = &["w1", "w3"];
const W2: &[&str] = &["w2"];

const fn gate_up(tail: &'static str, order: Order, cut: Cut, parts: &'static [&'static str]) -> Row {
    Row { tail, module: "experts", order, hidden: Hidden::In, cut, parts }
}

const fn down(tail: &'static str, order: Order, parts: &'static [&'static str]) -> Row {
    Row { tail, module: "experts", order, hidden: Hidden::Out, cut: Cut::Halves, parts }
}

pub(super) const FAMILIES: &[Family] = &[
    // `@use_experts_implementation` without arguments, `gate_up_proj[e].chunk(2)`: Qwen2MoeExperts,
    // Qwen3MoeExperts, Qwen3NextExperts, Qwen3_5MoeExperts, DeepseekV2Experts, DeepseekV3Experts,
    // DeepseekV32Experts, Dots1Experts, Ernie4_5_MoeExperts, ExaoneMoeExperts, FlexOlmoExperts, Gemma4TextExperts,
    // Glm4MoeExperts, Glm4MoeLiteExperts, Glm4vMoeTextExperts, GlmMoeDsaExperts, HunYuanMoEV1Experts, HYV3Experts,
    // JambaExperts, LagunaExperts, MellumExperts, MiMoV2FlashExperts, Mistral4Experts, OlmoeExperts, AfmoeExperts,
    // AXK1Experts, Cohere2MoeExperts, SolarOpenExperts, Qwen3OmniMoe{Thinker,Talker}TextExperts.
    Family {
        models: &[
            "qwen2_moe",
            "qwen3_moe",
            "qwen3_next",
            "qwen3_5_moe",
            "qwen3_5_moe_text",
            "qwen3_omni_moe",
            "qwen3_omni_moe_text",
            "qwen3_omni_moe_thinker",
            "qwen3_omni_moe_talker_text",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "dots1",
            "ernie4_5_moe",
            "exaone_moe",
            "flex_olmo",
            "gemma4",
            "gemma4_text",
            "glm4_moe",
            "glm4_moe_lite",
            "glm4v_moe",
            "glm4v_moe_text",
            "glm_moe_dsa",
            "hunyuan_v1_moe",
            "hy_v3",
            "jamba",
            "laguna",
            "mellum",
            "mimo_v2_flash",
            "mistral4",
            "olmoe",
            "afmoe",
            "axk1",
            "cohere2_moe",
            "solar_open",
        ],
        rows: &[
            gate_up("experts.gate_up_proj", Order::OutIn, Cut::Halves, GATE_UP),
            down("experts.down_proj", Order::OutIn, DOWN),
        ],
    },
    // The same layout; their checkpoints name the projections w1 (gate), w3 (up) and w2 (down):
    // MixtralExperts, MiniMaxExperts, MiniMaxM2Experts, PhimoeExperts, Lfm2MoeExperts, KimiLinearExperts.
    Family {
        models: &["mixtral", "minimax", "minimax_m2", "phimoe", "lfm2_moe", "kimi_linear"],
        rows: &[
            gate_up("experts.gate_up_proj", Order::OutIn, Cut::Halves, W13),
            down("experts.down_proj", Order::OutIn, W2),
        ],
    },
    // Qwen3VLMoeTextExperts is [experts, out, in], the published checkpoints are [experts, in, out]:
    // conversion_mapping has `Transpose(1, 2, check_dims=True)`.
    Family {
        models: &["qwen3_vl_moe", "qwen3_vl_moe_text"],
        rows: &[
            gate_up("experts.gate_up_proj", Order::Either, Cut::Halves, GATE_UP),
            down("experts.down_proj", Order::Either, DOWN),
        ],
    },
    // Llama4TextExperts: `bmm(x, gate_up_proj)`, then chunk.
    Family {
        models: &["llama4", "llama4_text"],
        rows: &[
            gate_up("experts.gate_up_proj", Order::InOut, Cut::Halves, GATE_UP),
            down("experts.down_proj", Order::InOut, DOWN),
        ],
    },
    // GptOssExperts: `is_transposed=True`, gate `[..., ::2]`, up `[..., 1::2]`, with biases.
    Family {
        models: &["gpt_oss"],
        rows: &[
            gate_up("experts.gate_up_proj", Order::InOut, Cut::Interleaved, GATE_UP),
            gate_up("experts.gate_up_proj_bias", Order::Bias, Cut::Interleaved, GATE_UP),
            down("experts.down_proj", Order::InOut, DOWN),
            down("experts.down_proj_bias", Order::Bias, DOWN),
        ],
    },
    // OpenAIPrivacyFilterExperts: as gpt_oss, but chunked into halves.
    Family {
        models: &["openai_privacy_filter"],
        rows: &[
            gate_up("experts.gate_up_proj", Order::InOut, Cut::Halves, GATE_UP),
            gate_up("experts.gate_up_proj_bias", Order::Bias, Cut::Halves, GATE_UP),
            down("experts.down_proj", Order::InOut, DOWN),
            down("experts.down_proj_bias", Order::Bias, DOWN),
        ],
    },
    // AriaExperts: `is_transposed=True`; checkpoints say fc1.weight and fc2.weight for the same tensors.
    Family {
        models: &["aria", "aria_text"],
        rows: &[
            gate_up("experts.gate_up_proj", Order::InOut, Cut::Halves, GATE_UP),
            gate_up("experts.fc1.weight", Order::InOut, Cut::Halves, GATE_UP),
            down("experts.down_proj", Order::InOut, DOWN),
            down("experts.fc2.weight", Order::InOut, DOWN),
        ],
    },
    // GraniteMoeExperts and its three copies; conversion_mapping only renames input_linear and output_linear.
    // vLLM's granitemoe.py splits them into the same names as here.
    Family {
        models: &["granitemoe", "granitemoeshared", "granitemoehybrid", "granitemoe_swa"],
        rows: &[
            gate_up("block_sparse_moe.input_linear.weight", Order::OutIn, Cut::Halves, W13),
            down("block_sparse_moe.output_linear.weight", Order::OutIn, W2),
            gate_up("block_sparse_moe.experts.gate_up_proj", Order::OutIn, Cut::Halves, W13),
            down("block_sparse_moe.experts.down_proj", Order::OutIn, W2),
        ],
    },
    // JetMoeMoE: two JetMoeParallelExperts, the first half activated. JetMoeMoA's experts (attention) are left out.
    Family {
        models: &["jetmoe"],
        rows: &[
            gate_up("mlp.input_linear.weight", Order::OutIn, Cut::Halves, GATE_UP),
            down("mlp.output_linear.weight", Order::OutIn, DOWN),
        ],
    },
    // NemotronHExperts: `has_gate=False`.
    Family {
        models: &["nemotron_h"],
        rows: &[
            gate_up("experts.up_proj", Order::OutIn, Cut::Halves, &["up_proj"]),
            down("experts.down_proj", Order::OutIn, DOWN),
        ],
    },
    // DbrxExpertGLU: w1 (gate), v1 (up) and w2 are [experts·ffn, model]; `x @ w1.T`, `x @ v1.T`, `h @ w2`.
    Family {
        models: &["dbrx"],
        rows: &[
            gate_up("experts.mlp.w1", Order::FlatOutIn, Cut::Halves, &["w1"]),
            gate_up("experts.mlp.v1", Order::FlatOutIn, Cut::Halves, &["v1"]),
            down("experts.mlp.w2", Order::FlatInOut, W2),
        ],
    },
];
