//! Names as real checkpoints have them.

use super::*;

#[test]
fn text_models() {
    let w4 = recipe("w4a16");
    check(
        &w4,
        Some(json!({"model_type": "llama", "vocab_size": 320, "hidden_size": 16})),
        &[
            ("model.embed_tokens.weight", &[320, 16], "embedding"),
            ("model.layers.0.self_attn.q_proj.weight", &[16, 16], "linear [16, 16]"),
            ("model.layers.0.self_attn.q_proj.bias", &[16], VECTOR),
            ("model.layers.0.mlp.gate_proj.weight", &[48, 16], "linear [48, 16]"),
            ("model.layers.0.mlp.gate_up_proj.weight", &[96, 16], "linear [96, 16]"),
            ("model.layers.0.input_layernorm.weight", &[16], VECTOR),
            ("lm_head.weight", &[320, 16], "output head (lm_head)"),
        ],
    );
    // Meta's own names, without a config: the embedding gives the vocabulary.
    check(
        &w4,
        None,
        &[
            ("tok_embeddings.weight", &[320, 16], "embedding"),
            ("layers.0.attention.wo.weight", &[16, 16], "linear [16, 16]"),
            ("output.weight", &[320, 16], "output head (output)"),
        ],
    );
    check(
        &w4,
        Some(json!({"model_type": "t5", "vocab_size": 320, "d_model": 16})),
        &[
            ("shared.weight", &[320, 16], "embedding"),
            ("encoder.block.0.layer.0.SelfAttention.q.weight", &[24, 16], "linear [24, 16]"),
            ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", &[32, 8], "embedding"),
            ("decoder.block.0.layer.2.DenseReluDense.wi_0.weight", &[32, 16], "linear [32, 16]"),
            ("lm_head.weight", &[320, 16], "output head (lm_head)"),
        ],
    );
    check(
        &w4,
        Some(json!({"model_type": "bert", "vocab_size": 320})),
        &[
            ("bert.embeddings.word_embeddings.weight", &[320, 16], "embedding"),
            ("bert.embeddings.token_type_embeddings.weight", &[2, 16], "embedding"),
            ("bert.embeddings.position_ids", &[1, 512], OTHER),
            ("bert.encoder.layer.0.attention.self.query.weight", &[16, 16], "linear [16, 16]"),
            ("bert.embeddings_project.weight", &[16, 16], "linear [16, 16]"),
            ("cls.predictions.transform.dense.weight", &[16, 16], "linear [16, 16]"),
            ("cls.predictions.decoder.weight", &[320, 16], "output head (cls.predictions.decoder)"),
        ],
    );
    check(
        &w4,
        Some(json!({"model_type": "mamba", "vocab_size": 320})),
        &[
            ("backbone.embeddings.weight", &[320, 16], "embedding"),
            ("backbone.layers.0.mixer.A_log", &[32, 16], OTHER),
            ("backbone.layers.0.mixer.conv1d.weight", &[32, 1, 4], "conv1d is not among --layer-types"),
            ("backbone.layers.0.mixer.x_proj.weight", &[33, 32], "linear [33, 32]"),
            ("backbone.layers.0.mixer.D", &[32], VECTOR),
        ],
    );
    // RWKV's gate is a projection.
    check(
        &w4,
        Some(json!({"model_type": "rwkv5"})),
        &[("rwkv.blocks.0.attention.gate.weight", &[16, 16], "linear [16, 16]")],
    );
}

#[test]
fn vision_audio_and_recurrent_models() {
    let w8 = recipe("w8a8");
    check(
        &w8,
        Some(json!({"model_type": "vit"})),
        &[
            ("vit.embeddings.cls_token", &[1, 1, 16], OTHER),
            ("vit.embeddings.position_embeddings", &[1, 197, 16], OTHER),
            ("vit.embeddings.patch_embeddings.projection.weight", &[16, 3, 4, 4], CONV),
            ("vit.encoder.layer.0.attention.attention.query.weight", &[16, 16], "linear [16, 16]"),
            ("classifier.weight", &[1000, 16], "linear [1000, 16]"),
        ],
    );
    check(
        &w8,
        Some(json!({"model_type": "whisper", "vocab_size": 320})),
        &[
            ("model.encoder.conv1.weight", &[16, 80, 3], "conv1d is not among --layer-types"),
            ("model.encoder.embed_positions.weight", &[1500, 16], "embedding"),
            ("model.decoder.layers.0.fc1.weight", &[64, 16], "linear [64, 16]"),
            ("proj_out.weight", &[320, 16], "output head (proj_out)"),
        ],
    );
    let cnn: &[(&str, &[usize], &str)] = &[
        ("conv1.weight", &[64, 3, 7, 7], "conv2d [64, 3, 7, 7]"),
        ("up.deconv.weight", &[64, 32, 2, 2], "convtranspose is not among --layer-types"),
        ("features.0.weight", &[8, 3, 3, 3, 3], "5-D weight"),
        ("bn1.running_mean", &[64], VECTOR),
        ("fc.weight", &[10, 64], "linear is not among --layer-types"),
        ("lstm.weight_ih_l0", &[64, 8], "lstm [64, 8]"),
        ("lstm.weight_hh_l0_reverse", &[64, 16], "lstm [64, 16]"),
        ("weight_hr_l1", &[8, 16], "lstm [8, 16]"),
        ("lstm.bias_ih_l0", &[64], VECTOR),
        ("lstm.weight_ih_lx", &[64, 8], OTHER),
        ("emb.weight", &[320, 8], "embedding [320, 8]"),
    ];
    let mut all = recipe("w8a8");
    all.layer_types = vec![LayerType::Conv2d, LayerType::Lstm, LayerType::Embedding];
    check(&all, None, cnn);
    let tensors: Vec<_> = cnn.iter().map(|(name, shape, _)| tensor(name, shape)).collect();
    let layer = |i: usize| match &choose(&all, &tensors, None)[i] {
        Choice::Quantize(layers) => layers[0].clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(layer(0).view, View::contiguous(64, 3 * 49));
    assert_eq!((layer(5).module.as_str(), layer(7).module.as_str()), ("lstm", ""));
}

#[test]
fn conv1d_of_gpt2_is_transposed() {
    let table: &[(&str, &[usize], &str)] = &[
        ("wte.weight", &[320, 16], "embedding"),
        ("wpe.weight", &[64, 16], "embedding"),
        ("h.0.attn.c_attn.weight", &[16, 48], "linear [48, 16]"),
        ("h.0.attn.c_proj.weight", &[16, 16], "linear [16, 16]"),
        ("h.0.attn.bias", &[1, 1, 64, 64], OTHER),
    ];
    let tensors: Vec<_> = table.iter().map(|(name, shape, _)| tensor(name, shape)).collect();
    for config in [Some(json!({"model_type": "gpt2"})), None] {
        check(&recipe("w4a16"), config.clone(), table);
        let choices = choose(&recipe("w4a16"), &tensors, config.as_ref());
        let Choice::Quantize(layers) = &choices[2] else { panic!() };
        let view = View { offset: 0, rows: 48, cols: 16, row_stride: 1, col_stride: 48 };
        assert_eq!(layers[0].view, view);
    }
    check(
        &recipe("w4a16"),
        Some(json!({"model_type": "gpt_bigcode"})),
        &[("transformer.h.0.attn.c_attn.weight", &[20, 16], "linear [20, 16]")],
    );
}

#[test]
fn experts() {
    let w4 = recipe("w4a16");
    check(
        &w4,
        Some(json!({"model_type": "mixtral"})),
        &[
            ("model.layers.0.block_sparse_moe.gate.weight", &[8, 16], "MoE router"),
            ("model.layers.0.block_sparse_moe.experts.7.w1.weight", &[32, 16], "linear [32, 16]"),
        ],
    );
    check(
        &w4,
        Some(json!({"model_type": "deepseek_v3", "hidden_size": 16})),
        &[
            ("model.layers.3.mlp.gate.weight", &[8, 16], "MoE router"),
            ("model.layers.3.mlp.gate.e_score_correction_bias", &[8], VECTOR),
            ("model.layers.3.mlp.shared_experts.gate_proj.weight", &[32, 16], "linear [32, 16]"),
            ("model.layers.3.self_attn.kv_a_proj_with_mqa.weight", &[40, 16], "linear [40, 16]"),
            ("model.layers.3.self_attn.q_proj.weight_scale_inv", &[1, 2], OTHER),
            ("model.layers.4.mlp.experts.gate_up_proj", &[4, 64, 16], "8 layers"),
        ],
    );
    let qwen = json!({"model_type": "qwen3_5_moe", "text_config": {"hidden_size": 16}});
    check(
        &w4,
        Some(qwen),
        &[
            ("model.language_model.layers.0.mlp.experts.down_proj", &[4, 16, 32], "4 layers"),
            ("model.language_model.layers.0.mlp.shared_expert_gate.weight", &[1, 16], "MoE router"),
            ("model.language_model.layers.0.mlp.gate.weight", &[4, 16], "MoE router"),
        ],
    );
    let llama4 = json!({"model_type": "llama4", "text_config": {"hidden_size": 16}});
    check(
        &w4,
        Some(llama4),
        &[
            ("language_model.model.layers.0.feed_forward.experts.gate_up_proj", &[4, 16, 64], "8 layers"),
            ("language_model.model.layers.0.feed_forward.router.weight", &[4, 16], "MoE router"),
            ("vision_model.class_embedding", &[16], VECTOR),
        ],
    );
    check(
        &w4,
        Some(json!({"model_type": "gpt_oss", "hidden_size": 16})),
        &[
            ("model.layers.0.mlp.experts.gate_up_proj", &[4, 16, 64], "8 layers"),
            ("model.layers.0.mlp.experts.gate_up_proj_bias", &[4, 64], "8 parts"),
            ("model.layers.0.mlp.experts.down_proj", &[4, 32, 16], "4 layers"),
            ("model.layers.0.mlp.experts.down_proj_bias", &[4, 16], "4 parts"),
            ("model.layers.0.mlp.router.weight", &[4, 16], "MoE router"),
            ("model.layers.0.self_attn.sinks", &[8], VECTOR),
        ],
    );
    check(
        &w4,
        Some(json!({"model_type": "foo"})),
        &[(
            "l.experts.w13_weight",
            &[4, 64, 16],
            "3-D weight [4, 64, 16] of an unknown model_type 'foo': orientation unknown",
        )],
    );
}
