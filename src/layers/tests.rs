use super::*;
use crate::{
    scheme::{Activations, Strategy, preset},
    tensor::{Dtype, View},
};
use serde_json::json;

mod models;

fn recipe(name: &str) -> Recipe {
    Recipe::new(preset(name).unwrap())
}

fn tensor(name: &str, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.into(), dtype: Dtype::BF16, shape: shape.to_vec() }
}

/// The outcome in one word or the reason.
fn word(choice: &Choice) -> String {
    match choice {
        Choice::Quantize(layers) if layers.len() == 1 => {
            format!("{} {:?}", layers[0].layer_type, layers[0].shape)
        }
        Choice::Quantize(layers) => format!("{} layers", layers.len()),
        Choice::Split { layers, kept } => format!("{} layers, {} kept", layers.len(), kept.len()),
        Choice::Rename(parts) => format!("{} parts", parts.len()),
        Choice::Cast => "cast".into(),
        Choice::Keep { reason } => reason.to_string(),
    }
}

fn check(recipe: &Recipe, config: Option<Value>, table: &[(&str, &[usize], &str)]) {
    let tensors: Vec<_> = table.iter().map(|(name, shape, _)| tensor(name, shape)).collect();
    let choices = choose(recipe, &tensors, config.as_ref());
    assert_eq!(choices.len(), tensors.len());
    for ((name, _, wanted), choice) in table.iter().zip(&choices) {
        assert_eq!(&word(choice), wanted, "{name}");
    }
}

const VECTOR: &str = "norm, bias or other 1-D tensor";
const OTHER: &str = "not a layer's weight by its name";
const CONV: &str = "conv2d is not among --layer-types";

#[test]
fn experts_are_split_together() {
    let config = Some(json!({"model_type": "gpt_oss", "hidden_size": 16}));
    let tensors: [(&str, &[usize]); 3] = [
        ("l.0.experts.gate_up_proj", &[4, 16, 64]),
        ("l.0.experts.gate_up_proj_bias", &[4, 64]),
        ("l.0.experts.down_proj", &[4, 32, 16]),
    ];
    let with = |exclude: &str, words: [&str; 3]| {
        let mut recipe = recipe("w4a16");
        recipe.exclude.push(Regex::new(exclude).unwrap());
        let table: Vec<_> = tensors.iter().zip(words).map(|((n, s), w)| (*n, *s, w)).collect();
        check(&recipe, config.clone(), &table);
    };
    with(r"experts\.3\.", ["6 layers, 2 kept", "8 parts", "3 layers, 1 kept"]);
    with("down_proj", ["8 layers", "8 parts", "4 parts"]);
    let all = "excluded by --exclude 'l'";
    with("l", [all, VECTOR, all]);
}

#[test]
fn include_and_exclude() {
    let config = Some(json!({"vocab_size": 320}));
    let regex = |p: &str| vec![Regex::new(p).unwrap()];
    let mut r = recipe("w4a16");
    r.include = regex("lm_head|gate|embed|norm");
    r.exclude = regex(r"layers\.1\.");
    let table = |embedding: &'static str| -> Vec<(&str, &[usize], &str)> {
        vec![
            ("lm_head.weight", &[320, 16], "linear [320, 16]"),
            ("model.embed_tokens.weight", &[320, 16], embedding),
            ("model.norm.weight", &[16], VECTOR),
            ("layers.0.mlp.gate.weight", &[8, 16], "linear [8, 16]"),
            ("layers.1.mlp.gate.weight", &[8, 16], r"excluded by --exclude 'layers\.1\.'"),
            ("layers.0.up_proj.weight", &[32, 16], "not matched by --include"),
        ]
    };
    check(&r, config.clone(), &table("embedding"));
    r.layer_types.push(LayerType::Embedding);
    check(&r, config, &table("embedding [320, 16]"));
    // Tied weights stay equal.
    check(
        &r,
        Some(json!({"text_config": {"tie_word_embeddings": true}})),
        &[
            ("lm_head.weight", &[320, 16], "tied to model.embed_tokens.weight"),
            ("model.embed_tokens.weight", &[320, 16], "tied to lm_head.weight"),
            ("vision.pos_embed.weight", &[64, 16], "embedding [64, 16]"),
        ],
    );
}

#[test]
fn overrides_sizes_and_dtypes() {
    let mut r = recipe("w8a8");
    r.min_params = 1000;
    for text in ["proj=bits=4,group-size=32", "down=group-size=64", "up_proj=bits=16"] {
        r.overrides.push(text.parse().unwrap());
    }
    check(
        &r,
        None,
        &[
            ("a.up_proj.weight", &[64, 64], "override says 16 bits"),
            ("a.tiny.weight", &[32, 16], "fewer than --min-params 1000 weights (512)"),
            ("a.none.weight", &[0, 16], "empty"),
            ("a.huge.weight", &[usize::MAX, 16], "more elements than can be counted"),
        ],
    );
    let mut tensors = vec![tensor("a.down_proj.weight", &[64, 64]), tensor("a.x.weight", &[64, 64])];
    tensors[1].dtype = Dtype::F64;
    tensors.push(TensorInfo { dtype: Dtype::I64, ..tensor("a.ids.weight", &[64, 64]) });
    let choices = choose(&r, &tensors, None);
    let Choice::Quantize(layers) = &choices[0] else { panic!() };
    let scheme = layers[0].scheme;
    assert_eq!((scheme.bits, scheme.activations), (4, Activations::Float));
    assert_eq!(scheme.strategy, Strategy::Group { group_size: 64 });
    assert_eq!(word(&choices[1]), "linear [64, 64]", "the plan refuses it by name");
    assert_eq!(word(&choices[2]), "not a float (I64)");
}

#[test]
fn casts_everything_that_floats() {
    let mut r = recipe("fp16");
    r.exclude.push(Regex::new("norm").unwrap());
    r.min_params = 2;
    let mut tensors = vec![tensor("a.weight", &[4]), tensor("norm", &[4]), tensor("one", &[1])];
    tensors.push(TensorInfo { dtype: Dtype::F16, ..tensor("b", &[2, 2]) });
    tensors.push(TensorInfo { dtype: Dtype::I8, ..tensor("c", &[2, 2]) });
    let words: Vec<_> = choose(&r, &tensors, None).iter().map(word).collect();
    let excluded = "excluded by --exclude 'norm'";
    let small = "fewer than --min-params 2 weights (1)";
    assert_eq!(words, ["cast", excluded, small, "already F16", "not a float (I8)"]);
}

#[test]
fn patterns_without_a_match_are_told() {
    let config = json!({"model_type": "qwen3_moe", "hidden_size": 16});
    let mut r = recipe("w4a16");
    for p in [r"experts\.3\.up", r"experts\.4\.", "mlp"] {
        r.exclude.push(Regex::new(p).unwrap());
    }
    r.overrides.push("nothing=bits=8".parse().unwrap());
    let tensors = [tensor("l.0.mlp.experts.gate_up_proj", &[4, 64, 16])];
    let told = unmatched(&r, &tensors, Some(&config));
    assert_eq!(told, [r"--exclude 'experts\.4\.'", "--override 'nothing'"]);
}

#[test]
fn nonsense_does_not_panic() {
    let names = ["", ".", "..weight", "weight", "experts.gate_up_proj", ".weight_ih_l", "é.weight"];
    let dims = [0, 1, 3, 1 << 20, usize::MAX];
    let configs = [
        json!(null),
        json!([1]),
        json!({"model_type": 3, "text_config": [], "vocab_size": -1, "hidden_size": "x"}),
        json!({"model_type": "gpt_oss"}),
        json!({"model_type": "dbrx", "ffn_config": {"moe_num_experts": 0, "ffn_hidden_size": 0}}),
    ];
    let mut tensors = Vec::new();
    for name in names {
        tensors.push(tensor(name, &[]));
        for a in dims {
            tensors.push(tensor(name, &[a]));
            for b in dims {
                tensors.push(tensor(name, &[a, b]));
                tensors.extend(dims.map(|c| tensor(name, &[a, b, c])));
            }
        }
    }
    for config in &configs {
        assert_eq!(choose(&recipe("w4a16"), &tensors, Some(config)).len(), tensors.len());
        unmatched(&recipe("w4a16"), &tensors, Some(config));
    }
}
