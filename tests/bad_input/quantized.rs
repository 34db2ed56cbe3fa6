//! Directories of quantized layers: compressed-tensors, GPTQ, AWQ. `tests/layouts_damaged.rs` has more of the last two.

use crate::{Case, accepted, common::Tensors, inputs::*, refused};
use safetensors::Dtype;
use serde_json::{Value, json};

const MODULE: &str = "model.layers.0.mlp.down_proj";
const DEQUANTIZE: &str = "dequantize -m x -o out -f";

/// A model with another part of one layer.
fn part(
    format: &'static str,
    name: &'static str,
    change: impl Fn(&mut (Dtype, Vec<usize>, Vec<u8>)) + Sync + Send + 'static,
) -> Make {
    quantized(format, move |tensors, _| change(tensors.get_mut(&format!("{MODULE}.{name}")).unwrap()))
}

/// A model without a part of one layer.
fn lacking(format: &'static str, name: &'static str) -> Make {
    quantized(format, move |tensors: &mut Tensors, _: &mut Value| {
        drop(tensors.remove(&format!("{MODULE}.{name}")).unwrap())
    })
}

/// A model whose config says something else.
fn saying(format: &'static str, key: &'static str, value: Value) -> Make {
    quantized(format, move |_, config| config["quantization_config"][key] = value.clone())
}

pub fn cases() -> Vec<Case> {
    let ct = "compressed-tensors";
    vec![
        refused(
            "compressed-tensors: no codes",
            lacking(ct, "weight_packed"),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight: its codes are missing; there is only model.layers.0.mlp.down_proj.weight_shape, model.layers.0.mlp.down_proj.weight_scale",
        ),
        refused(
            "compressed-tensors: no scales",
            lacking(ct, "weight_scale"),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight: its scales (model.layers.0.mlp.down_proj.weight_scale) are missing; there is only model.layers.0.mlp.down_proj.weight_shape, model.layers.0.mlp.down_proj.weight_packed",
        ),
        refused(
            "compressed-tensors: no shape",
            lacking(ct, "weight_shape"),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight: model.layers.0.mlp.down_proj.weight_shape is missing; it holds the shape of the packed weight",
        ),
        refused(
            "compressed-tensors: codes that are floats",
            part(ct, "weight_packed", |t| t.0 = Dtype::F32),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight_packed: F32 of shape [64, 24] does not hold 64 rows of 192 weights at 4 or 8 bits; other widths are not read",
        ),
        refused(
            "compressed-tensors: scales that are integers",
            part(ct, "weight_scale", |t| t.0 = Dtype::I16),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight: its scales are I16; accepted: F32, F16, BF16",
        ),
        refused(
            "compressed-tensors: scales of another shape",
            part(ct, "weight_scale", |t| t.1.reverse()),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight: model.layers.0.mlp.down_proj.weight_scale has shape [3, 64]; accepted: one scale, or [64, …] for 64 rows",
        ),
        refused(
            "compressed-tensors: a scale that is NaN",
            part(ct, "weight_scale", |t| t.2[..2].copy_from_slice(&[0, 0x7e])),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight_scale: scale 0 is not finite",
        ),
        refused(
            "compressed-tensors: a shape of 2^62 rows",
            part(ct, "weight_shape", |t| t.2[..8].copy_from_slice(&(1u64 << 62).to_le_bytes())),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight_shape: holds no possible shape; expected I64 with 2 to 8 positive numbers",
        ),
        refused(
            "compressed-tensors: a negative shape",
            part(ct, "weight_shape", |t| t.2[..8].copy_from_slice(&(-1i64).to_le_bytes())),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight_shape: holds no possible shape; expected I64 with 2 to 8 positive numbers",
        ),
        refused(
            "compressed-tensors: a shape of three numbers",
            part(ct, "weight_shape", |t| (t.1, t.2) = (vec![3], vec![1; 24])),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight_shape: holds no possible shape; expected I64 with 2 to 8 positive numbers",
        ),
        refused(
            "compressed-tensors: another number of bits",
            quantized(ct, |_, c| {
                c["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = json!(3)
            }),
            DEQUANTIZE,
            "config.json: group_0 says 3 bits, group, symmetric true; model.layers.0.mlp.down_proj is int4 symmetric, group 64, scales F16",
        ),
        refused(
            "compressed-tensors: groups that are a string",
            saying(ct, "config_groups", json!("all")),
            DEQUANTIZE,
            "config.json: no config group targets model.layers.0.mlp.down_proj",
        ),
        refused(
            "compressed-tensors: another format",
            saying(ct, "format", json!("marlin-24")),
            DEQUANTIZE,
            "x: compressed-tensors format marlin-24; accepted: pack-quantized, int-quantized, naive-quantized, mixed-precision",
        ),
        refused(
            "gptq: no zero points",
            lacking("gptq", "qzeros"),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight: model.layers.0.mlp.down_proj.qzeros is missing beside model.layers.0.mlp.down_proj.qweight",
        ),
        refused(
            "gptq: 3 bits",
            saying("gptq", "bits", json!(3)),
            DEQUANTIZE,
            "config.json: says 3 bits and groups of 64; model.layers.0.mlp.down_proj is int4 GPTQ symmetric, group 64, scales F16",
        ),
        refused(
            "gptq: an unknown version",
            saying("gptq", "checkpoint_format", json!("marlin")),
            DEQUANTIZE,
            "x: checkpoint_format marlin; accepted: gptq, gptq_v2",
        ),
        refused(
            "gptq: groups in another order",
            part("gptq", "g_idx", |t| t.2.reverse()),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.g_idx: input 0 belongs to group 33554432, so the groups are reordered (desc_act), which is not read; accepted: group i / 64",
        ),
        refused(
            "gptq: codes of another shape",
            part("gptq", "qweight", |t| t.1 = vec![1, 1536]),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight: qweight [1, 1536], qzeros [3, 8] and scales [3, 64] fit neither GPTQ ([in·bits/32, out], [groups, out·bits/32], [groups, out]) nor AWQ ([in, out/8], [groups, out/8], [groups, out]) of 4 or 8 bits",
        ),
        refused(
            "awq: no scales",
            lacking("awq", "scales"),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight: model.layers.0.mlp.down_proj.scales is missing beside model.layers.0.mlp.down_proj.qweight",
        ),
        refused(
            "awq: an unknown version",
            saying("awq", "version", json!("gemv")),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight: AWQ version gemv; accepted: gemm",
        ),
        refused(
            "awq: an infinite scale",
            part("awq", "scales", |t| t.2[..2].copy_from_slice(&[0, 0x7c])),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.scales: scale 0 is not finite",
        ),
        refused(
            "awq: says gptq",
            saying("awq", "quant_method", json!("gptq")),
            DEQUANTIZE,
            "model.layers.0.mlp.down_proj.weight: has the shapes of awq, but config.json says gptq",
        ),
        refused(
            "quantized by what is not read",
            saying("gptq", "quant_method", json!("aqlm")),
            DEQUANTIZE,
            "x: quantized by aqlm; accepted: compressed-tensors, gptq, awq",
        ),
        refused(
            "quantization_config: a list",
            quantized("gptq", |_, c| c["quantization_config"] = json!([1])),
            DEQUANTIZE,
            "x/config.json: quantization_config is no JSON object",
        ),
        refused(
            "quantization_config: none, and validate",
            quantized("gptq", |_, c| drop(c.as_object_mut().unwrap().remove("quantization_config"))),
            "validate x",
            "config.json has no quantization_config: loaders would take the codes for weights",
        ),
        refused(
            "validate: a scale that is NaN",
            part(ct, "weight_scale", |t| t.2[..2].copy_from_slice(&[0, 0x7e])),
            "validate x",
            "model.layers.0.mlp.down_proj.weight_scale: scale 0 is not finite",
        ),
        refused(
            "quantized twice",
            quantized(ct, |_, _| {}),
            crate::DIRECTORY,
            "the checkpoint is already quantized: config.json has a quantization_config (compressed-tensors); monoquant dequantize makes floats of what it can read",
        ),
        refused(
            "quantized twice, without a config",
            all([quantized(ct, |_, _| {}), without("x/config.json")]),
            crate::DIRECTORY,
            "model.layers.0.mlp.down_proj.weight_packed: the checkpoint is already quantized (I32 of shape [64, 24]); monoquant dequantize makes floats of what it can read",
        ),
        refused(
            "dequantize: what is not quantized",
            model(),
            DEQUANTIZE,
            "no quantized layer found; accepted: compressed-tensors (pack-quantized or int-quantized), GPTQ, AWQ, GGUF blocks",
        ),
        refused(
            "convert: what is not quantized",
            model(),
            "convert -m x -o out -f --format gptq",
            "no quantized layer found, and so nothing to convert; monoquant quantize makes some",
        ),
        refused("validate: what is not quantized", model(), "validate x", "no quantized layer found"),
        refused(
            "convert: to what it is",
            quantized("gptq", |_, _| {}),
            "convert -m x -o out -f --format gptq",
            "model.layers.0.mlp.down_proj.weight: is in the layout of gptq already",
        ),
        refused(
            "compare: nothing in common",
            all([
                sound(),
                tensors(
                    "y.safetensors",
                    [("other".into(), tensor(monoquant::tensor::Float::F32, &[2, 2], wave))].into(),
                ),
            ]),
            "compare x.safetensors y.safetensors",
            "x.safetensors and y.safetensors have no tensor in common: there is nothing to compare",
        ),
        accepted(
            "compare: other shapes",
            all([
                sound(),
                tensors(
                    "y.safetensors",
                    [("layer.weight".into(), tensor(monoquant::tensor::Float::F32, &[64, 8], wave))].into(),
                ),
            ]),
            "compare x.safetensors y.safetensors",
            " tensor  first  second  SQNR  largest error  size\nnot comparable: layer.weight: shapes [8, 64] and [64, 8]\nSQNR exact, largest error 0.000e0, 2.0 kB → 2.0 kB (1.00×)",
        ),
        refused(
            "dequantize: scales that overflow f16",
            quantized(ct, |t, _| {
                let scales = t.get_mut(&format!("{MODULE}.weight_scale")).unwrap();
                scales.2.chunks_exact_mut(2).for_each(|c| c.copy_from_slice(&[0xff, 0x7b]));
            }),
            "dequantize -m x -o out -f --dtype f16",
            "model.layers.0.mlp.down_proj.weight_packed: 10716 values are beyond the largest of the new dtype; --saturate clamps, --dtype f32 holds them",
        ),
    ]
}
