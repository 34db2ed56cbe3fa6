use super::*;
use crate::reader::gguf::Keys;

fn keys(architecture: &str, layers: u32, experts: u32) -> Facts {
    let mut keys = Keys::default();
    keys.set_text("general.architecture", architecture);
    keys.set_number(&format!("{architecture}.block_count"), layers);
    keys.set_number(&format!("{architecture}.expert_count"), experts);
    Facts::new(&keys)
}

/// A model of these layers, whose rows have 512 weights, or another number where it is said.
fn model(layers: usize, tied: bool) -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![("token_embd.weight".to_owned(), vec![100, 512])];
    for i in 0..layers {
        for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
            tensors.push((format!("blk.{i}.{name}.weight"), vec![64, 512]));
        }
        tensors.push((format!("blk.{i}.attn_norm.weight"), vec![512]));
    }
    tensors.push(("output_norm.weight".to_owned(), vec![512]));
    if !tied {
        tensors.push(("output.weight".to_owned(), vec![100, 512]));
    }
    tensors
}

fn chosen(mixture: Mixture, tensors: &[(String, Vec<usize>)], facts: &Facts) -> Vec<(String, Target)> {
    let borrowed: Vec<(&str, &[usize])> = tensors.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    let names = tensors.iter().map(|(n, _)| n.clone());
    names.zip(targets(mixture, &borrowed, facts)).collect()
}

/// Layers in which this weight gets this type.
fn layers_with(chosen: &[(String, Target)], weight: &str, block: Block) -> Vec<u64> {
    let with = |(name, target): &&(String, Target)| {
        name.contains(weight) && matches!(target, Target::Block(b, _) if *b == block)
    };
    chosen.iter().filter(with).map(|(name, _)| layer(name).unwrap()).collect()
}

#[test]
fn half_of_values_and_downs_get_six_bits() {
    let facts = keys("llama", 32, 0);
    let all = chosen(Mixture::Q4_K_M, &model(32, false), &facts);
    // as llama-quantize prints it for a Llama of 32 layers
    let more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];
    assert_eq!(layers_with(&all, "ffn_down", Block::Q6_K), more);
    assert_eq!(layers_with(&all, "attn_v", Block::Q6_K), more);
    assert_eq!(layers_with(&all, "attn_q", Block::Q4_K).len(), 32);
    let target = |name: &str| all.iter().find(|(n, _)| n == name).unwrap().1.clone();
    assert_eq!(target("output.weight"), Target::Block(Block::Q6_K, Some(MORE_BITS.into())));
    assert_eq!(target("token_embd.weight"), Target::Block(Block::Q4_K, None));
    assert_eq!(target("output_norm.weight"), Target::Keep("norm, bias or other 1-D tensor"));
}

#[test]
fn where_q5_k_is_wanted_q6_k_is_taken() {
    let all = chosen(Mixture::Q4_K_S, &model(16, true), &keys("llama", 16, 0));
    assert_eq!(layers_with(&all, "attn_v", Block::Q6_K), [0, 1, 2, 3]);
    assert_eq!(layers_with(&all, "ffn_down", Block::Q6_K), [0, 1]);
    let reason = match &all[3].1 {
        Target::Block(Block::Q6_K, Some(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert!(reason.starts_with("llama-quantize takes Q5_K"), "{reason}");
    // the embedding is the head
    assert_eq!(all[0].1, Target::Block(Block::Q6_K, Some(MORE_BITS.into())));
}

#[test]
fn rows_that_do_not_fit() {
    let tensors =
        [("blk.0.attn_q.weight", [64, 96]), ("blk.0.attn_v.weight", [64, 96]), ("x.weight", [64, 40])];
    let tensors = tensors.map(|(n, s)| (n.to_owned(), s.to_vec()));
    let all = chosen(Mixture::Q4_K_M, &tensors, &keys("llama", 1, 0));
    assert!(
        matches!(&all[0].1, Target::Block(Block::Q8_0, Some(r)) if r.contains("llama-quantize takes Q5_0"))
    );
    assert!(
        matches!(&all[1].1, Target::Block(Block::Q8_0, Some(r)) if r.ends_with("no whole blocks of 256"))
    );
    assert!(matches!(&all[2].1, Target::Half(r) if r.contains("rows of 40 weights")));
    let all = chosen(Mixture::Q4_0, &tensors, &keys("llama", 1, 0));
    assert_eq!(all[0].1, Target::Block(Block::Q4_0, None));
}

#[test]
fn experts() {
    let facts = keys("llama", 8, 8);
    let names = ["attn_k", "attn_v", "attn_output", "ffn_gate_inp", "ffn_down_exps"];
    let tensors: Vec<_> =
        (0..8).flat_map(|i| names.map(|n| (format!("blk.{i}.{n}.weight"), vec![8, 64, 512]))).collect();
    let all = chosen(Mixture::Q4_K_M, &tensors, &facts);
    assert_eq!(layers_with(&all, "attn_k", Block::Q8_0).len(), 8);
    assert_eq!(layers_with(&all, "attn_v", Block::Q8_0).len(), 8);
    assert_eq!(layers_with(&all, "attn_output", Block::Q6_K).len(), 8);
    assert_eq!(layers_with(&all, "ffn_down_exps", Block::Q6_K), [0, 3, 6, 7]);
    assert_eq!(all[3].1, Target::Keep("MoE router"));
}

#[test]
fn what_is_never_quantized() {
    let facts = keys("rwkv7", 1, 0);
    for (name, shape, why) in [
        ("blk.0.ffn_gate_inp.weight", &[8, 64][..], "MoE router"),
        ("blk.0.ssm_conv1d.weight", &[64, 4], "convolution"),
        ("blk.0.time_mix_w1.weight", &[64, 64], "small"),
        ("position_embd.weight", &[64, 64], "positions"),
        ("token_types.weight", &[2, 64], "positions"),
        ("blk.0.attn_q.bias", &[64, 64], "not a weight"),
        ("x.weight", &[1, 64], "1-D"),
    ] {
        assert!(kept(name, shape, &facts).is_some_and(|k| k.contains(why)), "{name}");
    }
    assert_eq!(kept("blk.0.attn_q.weight", &[64, 64], &facts), None);
    assert_eq!(kept("blk.0.hc_a.weight", &[64, 64], &facts), None);
    assert!(kept("blk.0.hc_a.weight", &[64, 64], &keys("glm5-next", 1, 0)).is_some());
}
