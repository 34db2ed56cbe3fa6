use super::*;
use crate::tensor::Dtype;
use serde_json::json;

fn stack(model: &str, hidden: usize, name: &str, shape: &[usize]) -> Result<Stack, String> {
    let config = json!({
        "model_type": model, "hidden_size": hidden,
        "ffn_config": { "moe_num_experts": 2, "ffn_hidden_size": 3 },
    });
    let tensor = TensorInfo { name: name.into(), dtype: Dtype::BF16, shape: shape.to_vec() };
    split(&tensor, &Facts::new(Some(&config), &[])).unwrap()
}

/// The indices of the source's elements that a view yields, row after row.
fn read(view: &View) -> Vec<u64> {
    let at = |r: usize, c: usize| view.offset + r as u64 * view.row_stride + c as u64 * view.col_stride;
    (0..view.rows).flat_map(|r| (0..view.cols).map(move |c| at(r, c))).collect()
}

/// `x[expert]`, or its transpose, as rows of indices.
fn matrix(expert: usize, a: usize, b: usize, transposed: bool) -> Vec<Vec<u64>> {
    let at = |i: usize, j: usize| (expert * a * b + i * b + j) as u64;
    if transposed {
        (0..b).map(|j| (0..a).map(|i| at(i, j)).collect()).collect()
    } else {
        (0..a).map(|i| (0..b).map(|j| at(i, j)).collect()).collect()
    }
}

/// The parts' names and contents must be what the modeling code computes with.
fn check(stack: &Stack, experts: usize, a: usize, b: usize, transposed: bool, cut: &[(&str, &str)]) {
    let mut parts = stack.parts.iter();
    for e in 0..experts {
        let rows = matrix(e, a, b, transposed);
        for (name, how) in cut {
            let wanted: Vec<u64> = match *how {
                "all" => rows.concat(),
                "first" => rows[..rows.len() / 2].concat(),
                "second" => rows[rows.len() / 2..].concat(),
                "even" => rows.iter().step_by(2).flatten().copied().collect(),
                _ => rows.iter().skip(1).step_by(2).flatten().copied().collect(),
            };
            let part = parts.next().unwrap();
            assert_eq!(part.name, name.replace('#', &e.to_string()));
            assert_eq!(read(&part.view), wanted, "{}", part.name);
            assert_eq!(part.shape.iter().product::<usize>(), wanted.len());
        }
    }
    assert!(parts.next().is_none());
}

#[test]
fn parts_are_what_the_modeling_code_uses() {
    let halves =
        [("m.mlp.experts.#.gate_proj.weight", "first"), ("m.mlp.experts.#.up_proj.weight", "second")];
    let whole = [("m.mlp.experts.#.down_proj.weight", "all")];
    for model in ["qwen3_moe", "deepseek_v3", "qwen3_5_moe", "qwen3_vl_moe"] {
        let s = stack(model, 5, "m.mlp.experts.gate_up_proj", &[2, 6, 5]).unwrap();
        check(&s, 2, 6, 5, false, &halves);
        let s = stack(model, 5, "m.mlp.experts.down_proj", &[2, 5, 3]).unwrap();
        check(&s, 2, 5, 3, false, &whole);
    }
    // The published checkpoints of Qwen3-VL are transposed, as those of Llama 4 and Aria.
    for model in ["qwen3_vl_moe", "llama4_text", "aria_text"] {
        let s = stack(model, 5, "m.mlp.experts.gate_up_proj", &[2, 5, 6]).unwrap();
        check(&s, 2, 5, 6, true, &halves);
        let s = stack(model, 5, "m.mlp.experts.down_proj", &[2, 3, 5]).unwrap();
        check(&s, 2, 3, 5, true, &whole);
    }
    let s = stack("aria_text", 5, "m.mlp.experts.fc1.weight", &[2, 5, 6]).unwrap();
    check(&s, 2, 5, 6, true, &halves);
    let s = stack("jetmoe", 5, "m.mlp.input_linear.weight", &[2, 6, 5]).unwrap();
    check(&s, 2, 6, 5, false, &halves);
    let s = stack("nemotron_h", 5, "m.mlp.experts.up_proj", &[2, 3, 5]).unwrap();
    check(&s, 2, 3, 5, false, &[("m.mlp.experts.#.up_proj.weight", "all")]);
}

#[test]
fn mixtral_names() {
    let s = stack("mixtral", 5, "mlp.experts.gate_up_proj", &[2, 6, 5]).unwrap();
    check(&s, 2, 6, 5, false, &[("mlp.experts.#.w1.weight", "first"), ("mlp.experts.#.w3.weight", "second")]);
    for name in ["l.block_sparse_moe.input_linear.weight", "l.block_sparse_moe.experts.gate_up_proj"] {
        let s = stack("granitemoe", 5, name, &[2, 6, 5]).unwrap();
        let e = "l.block_sparse_moe.experts";
        let (w1, w3) = (format!("{e}.#.w1.weight"), format!("{e}.#.w3.weight"));
        check(&s, 2, 6, 5, false, &[(&w1, "first"), (&w3, "second")]);
        assert_eq!(s.container, e);
    }
    let s = stack("granitemoehybrid", 5, "block_sparse_moe.output_linear.weight", &[2, 5, 3]).unwrap();
    check(&s, 2, 5, 3, false, &[("block_sparse_moe.experts.#.w2.weight", "all")]);
}

#[test]
fn gpt_oss_interleaves() {
    let parts = |what: &str| ["gate", "up"].map(|p| format!("m.experts.#.{p}_proj.{what}"));
    let [gate, up] = parts("weight");
    let s = stack("gpt_oss", 5, "m.experts.gate_up_proj", &[2, 5, 6]).unwrap();
    check(&s, 2, 5, 6, true, &[(&gate, "even"), (&up, "odd")]);
    // A bias is a column of 2·ffn numbers.
    let [gate, up] = parts("bias");
    let s = stack("gpt_oss", 5, "m.experts.gate_up_proj_bias", &[2, 6]).unwrap();
    check(&s, 2, 6, 1, false, &[(&gate, "even"), (&up, "odd")]);
    assert!(s.bias && s.parts[0].shape == [3] && s.parts[0].view.rows == 1);
    let s = stack("gpt_oss", 5, "m.experts.down_proj_bias", &[2, 5]).unwrap();
    check(&s, 2, 5, 1, false, &[("m.experts.#.down_proj.bias", "all")]);
    let s = stack("openai_privacy_filter", 5, "m.experts.gate_up_proj_bias", &[2, 6]).unwrap();
    check(&s, 2, 6, 1, false, &[(&gate, "first"), (&up, "second")]);
}

#[test]
fn dbrx_is_flat() {
    let name = |w: &str| format!("transformer.blocks.0.ffn.experts.mlp.{w}");
    let part = |w: &str| format!("transformer.blocks.0.ffn.experts.#.{w}.weight");
    for (w, transposed) in [("w1", false), ("v1", false), ("w2", true)] {
        let s = stack("dbrx", 5, &name(w), &[6, 5]).unwrap();
        check(&s, 2, 3, 5, transposed, &[(&part(w), "all")]);
    }
    assert!(stack("dbrx", 5, &name("w1"), &[8, 5]).unwrap_err().contains("2 experts of width 3"));
}

#[test]
fn contradictions_are_named() {
    let gate_up = "m.experts.gate_up_proj";
    for (model, shape, why) in [
        ("qwen3_moe", &[2, 7, 5][..], "7 outputs do not split into 2"),
        ("qwen3_moe", &[2, 5, 6], "the last axis should be hidden_size 5"),
        ("llama4", &[2, 6, 5], "the middle axis should be hidden_size 5"),
        ("qwen3_vl_moe", &[2, 5, 5], "both axes are hidden_size 5"),
        ("qwen3_vl_moe", &[2, 6, 6], "no axis is hidden_size 5"),
        ("qwen3_moe", &[6, 5], "not the number of dimensions"),
        ("qwen3_moe", &[1 << 17, 2, 5], "too many experts"),
        ("foo", &[2, 6, 5], "unknown model_type 'foo': orientation unknown"),
    ] {
        let error = stack(model, 5, gate_up, shape).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let error = stack("jetmoe", 5, "l.self_attention.experts.input_linear.weight", &[2, 6, 5]);
    assert!(error.unwrap_err().contains("under a name that model_type 'jetmoe'"));
}
