//! Weights: not finite, huge, tiny, none, one, and very many.

use crate::{Case, QUANTIZE, accepted, inputs::*, refused};
use monoquant::tensor::Float::{self, *};

const INT4: &str = "quantize -m x.safetensors -o out.safetensors -f -b 4 --group-size 32";
const MINMAX4: &str =
    "quantize -m x.safetensors -o out.safetensors -f -b 4 --group-size 32 --observer minmax";
const TENSOR: &str = "quantize -m x.safetensors -o out.safetensors -f --strategy tensor";
const HISTOGRAM: &str = "quantize -m x.safetensors -o out.safetensors -f --observer histogram";
const PERCENTILE: &str = "quantize -m x.safetensors -o out.safetensors -f --observer percentile";
const ASYMMETRIC: &str = "quantize -m x.safetensors -o out.safetensors -f --scheme asymmetric";
const F16_CAST: &str = "quantize -m x.safetensors -o out.safetensors -f -b 16";
const BF16_CAST: &str = "quantize -m x.safetensors -o out.safetensors -f --preset bf16";

/// 8 rows of 64 waves, but for one value.
fn one(float: Float, at: usize, value: f32) -> Make {
    weight(float, &[8, 64], move |i| if i == at { value } else { wave(i) })
}

/// A sparse file of one BF16 tensor of zeros.
fn zeros(shape: &[u64]) -> Make {
    let bytes = 2 * shape.iter().product::<u64>();
    let text =
        format!(r#"{{"layer.weight":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[0,{bytes}]}}}}"#);
    let head = header(&text, 0);
    sparse("x.safetensors", head.len() as u64 + bytes, head)
}

pub fn cases() -> Vec<Case> {
    let huge = |float: Float| weight(float, &[8, 64], move |i| float.max() * wave(i));
    let subnormal = || weight(F32, &[8, 64], |i| f32::from_bits(i as u32 + 1));
    vec![
        refused(
            "weights: NaN",
            one(F32, 70, f32::NAN),
            QUANTIZE,
            "layer.weight: 1 value is not finite (NaN or infinity), the first at index 70; --on-nonfinite keep leaves the tensor as it is",
        ),
        refused(
            "weights: NaN in F16",
            one(F16, 70, f32::NAN),
            QUANTIZE,
            "layer.weight: 1 value is not finite (NaN or infinity), the first at index 70; --on-nonfinite keep leaves the tensor as it is",
        ),
        refused(
            "weights: NaN in BF16",
            one(BF16, 70, f32::NAN),
            QUANTIZE,
            "layer.weight: 1 value is not finite (NaN or infinity), the first at index 70; --on-nonfinite keep leaves the tensor as it is",
        ),
        refused(
            "weights: NaN at 4 bits",
            one(F32, 511, f32::NAN),
            INT4,
            "layer.weight: 1 value is not finite (NaN or infinity), the first at index 511; --on-nonfinite keep leaves the tensor as it is",
        ),
        refused(
            "weights: NaN in a whole tensor",
            one(F32, 0, f32::NAN),
            TENSOR,
            "layer.weight: 1 value is not finite (NaN or infinity), the first at index 0; --on-nonfinite keep leaves the tensor as it is",
        ),
        refused(
            "weights: NaN in a histogram",
            one(F32, 0, f32::NAN),
            HISTOGRAM,
            "layer.weight: 1 value is not finite (NaN or infinity), the first at index 0; --on-nonfinite keep leaves the tensor as it is",
        ),
        refused(
            "weights: NaN in percentiles",
            one(F32, 0, f32::NAN),
            PERCENTILE,
            "layer.weight: 1 value is not finite (NaN or infinity), the first at index 0; --on-nonfinite keep leaves the tensor as it is",
        ),
        refused(
            "weights: all NaN",
            weight(F32, &[8, 64], |_| f32::NAN),
            QUANTIZE,
            "layer.weight: 512 values are not finite (NaN or infinity), the first at index 0; --on-nonfinite keep leaves the tensor as it is",
        ),
        refused(
            "weights: infinite",
            one(F32, 70, f32::INFINITY),
            QUANTIZE,
            "layer.weight: 1 value is not finite (NaN or infinity), the first at index 70; --on-nonfinite keep leaves the tensor as it is",
        ),
        refused(
            "weights: minus infinity",
            one(F32, 70, f32::NEG_INFINITY),
            INT4,
            "layer.weight: 1 value is not finite (NaN or infinity), the first at index 70; --on-nonfinite keep leaves the tensor as it is",
        ),
        refused(
            "weights: both infinities",
            weight(F16, &[8, 64], |i| if i % 2 == 0 { f32::INFINITY } else { f32::NEG_INFINITY }),
            ASYMMETRIC,
            "layer.weight: 512 values are not finite (NaN or infinity), the first at index 0; --on-nonfinite keep leaves the tensor as it is",
        ),
        refused(
            "weights: NaN, and keep",
            one(F32, 70, f32::NAN),
            "quantize -m x.safetensors -o out.safetensors -f --on-nonfinite keep",
            "no layer is left to quantize (layer.weight: 1 value is not finite, the first at index 70); --include, --layer-types and --min-params choose others",
        ),
        accepted(
            "weights: NaN, and keep, beside others",
            tensors(
                "x.safetensors",
                [
                    (
                        "a.weight".to_owned(),
                        tensor(F32, &[8, 64], |i| if i > 500 { f32::NAN } else { wave(i) }),
                    ),
                    ("b.weight".to_owned(), tensor(F32, &[8, 64], wave)),
                ]
                .into(),
            ),
            "quantize -m x.safetensors -o out.safetensors -f --on-nonfinite keep",
            "a.weight: kept (11 values are not finite, the first at index 501)\nb.weight: int8 symmetric, channel, minmax, 50 dB",
        ),
        refused(
            "weights: NaN, and a cast",
            one(F32, 70, f32::NAN),
            F16_CAST,
            "layer.weight: 1 value is not finite (NaN or infinity), the first at index 70; --on-nonfinite keep leaves the tensor as it is",
        ),
        refused(
            "weights: infinity, and a cast",
            one(F32, 70, f32::INFINITY),
            BF16_CAST,
            "layer.weight: 1 value is not finite (NaN or infinity), the first at index 70; --on-nonfinite keep leaves the tensor as it is",
        ),
        refused(
            "weights: too large for a cast",
            one(F32, 70, 1e6),
            F16_CAST,
            "layer.weight: 1 value is beyond the largest of the new dtype; --saturate clamps, --exclude leaves the tensor as it is",
        ),
        refused(
            "weights: too large for a cast to BF16",
            one(F32, 70, f32::MAX),
            BF16_CAST,
            "layer.weight: 1 value is beyond the largest of the new dtype; --saturate clamps, --exclude leaves the tensor as it is",
        ),
        accepted(
            "weights: too large for a cast, and clamped",
            one(F32, 70, 1e6),
            "quantize -m x.safetensors -o out.safetensors -f -b 16 --saturate",
            "layer.weight: cast to F16, 1 clamped\nwarning: layer.weight: 1 value was clamped to the largest of the new dtype",
        ),
        refused(
            "weights: the largest there are",
            huge(F32),
            QUANTIZE,
            "layer.weight: group 0 from row 0 has a range that overflows F32 when it is coded; leave the layer out with --exclude, or scale its weights down",
        ),
        refused(
            "weights: the largest there are, at 4 bits",
            huge(F32),
            MINMAX4,
            "layer.weight: group 0 from row 0 has a range that overflows F32 when it is coded; leave the layer out with --exclude, or scale its weights down",
        ),
        refused(
            "weights: the largest there are, searched",
            huge(F32),
            INT4,
            "layer.weight: group 0 from row 0 has a range that overflows F32 when it is coded; leave the layer out with --exclude, or scale its weights down",
        ),
        accepted(
            "weights: the largest of F16",
            huge(F16),
            INT4,
            "layer.weight: int4 symmetric, group 32, mse, 26 dB",
        ),
        refused(
            "weights: the largest of BF16",
            huge(BF16),
            INT4,
            "layer.weight: group 0 from row 0 has a range that overflows BF16 when it is coded; leave the layer out with --exclude, or scale its weights down",
        ),
        refused(
            "weights: a range that overflows",
            huge(F32),
            ASYMMETRIC,
            "layer.weight: group 0 from row 0 has a range that overflows F32 when it is coded; leave the layer out with --exclude, or scale its weights down",
        ),
        accepted(
            "weights: one huge among small ones",
            one(F32, 70, 1e30),
            QUANTIZE,
            "layer.weight: int8 symmetric, channel, minmax, 48 dB",
        ),
        accepted(
            "weights: subnormal",
            subnormal(),
            QUANTIZE,
            "layer.weight: int8 symmetric, channel, minmax, 999 dB\nwarning: layer.weight: all its weights are zero, or below the smallest normal f32, which counts as zero",
        ),
        accepted(
            "weights: subnormal, at 4 bits",
            subnormal(),
            INT4,
            "layer.weight: int4 symmetric, group 32, mse, 999 dB\nwarning: layer.weight: all its weights are zero, or below the smallest normal f32, which counts as zero",
        ),
        accepted(
            "weights: subnormal, in a histogram",
            subnormal(),
            HISTOGRAM,
            "layer.weight: int8 symmetric, channel, histogram, 999 dB\nwarning: layer.weight: all its weights are zero, or below the smallest normal f32, which counts as zero",
        ),
        accepted(
            "weights: subnormal of F16",
            weight(F16, &[8, 64], |i| f32::from(i as u16) * 2f32.powi(-24)),
            QUANTIZE,
            "layer.weight: int8 symmetric, channel, minmax, 24 dB",
        ),
        accepted(
            "weights: zeros",
            weight(F32, &[8, 64], |_| 0.0),
            INT4,
            "layer.weight: int4 symmetric, group 32, mse, 999 dB\nwarning: layer.weight: all its weights are zero, or below the smallest normal f32, which counts as zero",
        ),
        accepted(
            "weights: minus zeros",
            weight(BF16, &[8, 64], |_| -0.0),
            ASYMMETRIC,
            "layer.weight: int8 asymmetric, channel, minmax, 999 dB\nwarning: layer.weight: all its weights are zero, or below the smallest normal f32, which counts as zero\nnote: vLLM refuses asymmetric int8 weights with quantized inputs; transformers loads them",
        ),
        accepted(
            "weights: all equal",
            weight(F16, &[8, 64], |_| 0.3),
            HISTOGRAM,
            "layer.weight: int8 symmetric, channel, histogram, 48 dB",
        ),
        refused(
            "weights: a scalar",
            weight(F32, &[], wave),
            QUANTIZE,
            "no layer is left to quantize (there is no matrix); --include, --layer-types and --min-params choose others",
        ),
        accepted(
            "weights: a scalar, and a cast",
            weight(F32, &[], wave),
            F16_CAST,
            "layer.weight: cast to F16",
        ),
        refused(
            "weights: a vector",
            weight(F32, &[64], wave),
            QUANTIZE,
            "no layer is left to quantize (there is no matrix); --include, --layer-types and --min-params choose others",
        ),
        refused(
            "weights: no rows",
            weight(F32, &[0, 64], wave),
            QUANTIZE,
            "no layer is left to quantize (layer.weight: empty); --include, --layer-types and --min-params choose others",
        ),
        refused(
            "weights: empty rows",
            weight(F32, &[64, 0], wave),
            INT4,
            "no layer is left to quantize (layer.weight: empty); --include, --layer-types and --min-params choose others",
        ),
        refused(
            "weights: empty, and a cast",
            weight(F32, &[0], wave),
            BF16_CAST,
            "nothing to cast: every float tensor is BF16 already, or empty",
        ),
        accepted(
            "weights: empty, beside others",
            tensors(
                "x.safetensors",
                [
                    ("a.weight".to_owned(), tensor(F32, &[0, 64], wave)),
                    ("b.weight".to_owned(), tensor(F32, &[8, 64], wave)),
                    ("step".to_owned(), tensor(F32, &[], wave)),
                ]
                .into(),
            ),
            QUANTIZE,
            "a.weight: kept (empty)\nb.weight: int8 symmetric, channel, minmax, 50 dB\nstep: kept (norm, bias or other 1-D tensor)",
        ),
        accepted(
            "weights: one",
            weight(F32, &[1, 1], |_| 0.3),
            QUANTIZE,
            "layer.weight: int8 symmetric, channel, minmax, 48 dB\nwarning: layer.weight: codes and scales take more room than the weights did (channel); --min-params or --exclude leaves it as it is",
        ),
        accepted(
            "weights: one a row",
            weight(F32, &[8, 1], wave),
            ASYMMETRIC,
            "layer.weight: int8 asymmetric, channel, minmax, 144 dB\nwarning: layer.weight: codes and scales take more room than the weights did (channel); --min-params or --exclude leaves it as it is\nnote: vLLM refuses asymmetric int8 weights with quantized inputs; transformers loads them",
        ),
        refused(
            "weights: one, in groups",
            weight(F32, &[1, 1], |_| 0.3),
            INT4,
            "layer.weight: groups of 32 do not divide its rows of 1 weights; no power of two from 8 on does (--group-size, or --on-mismatch shrink|channel|keep)",
        ),
        accepted(
            "weights: one, in a histogram",
            weight(F32, &[1, 1], |_| 0.3),
            HISTOGRAM,
            "layer.weight: int8 symmetric, channel, histogram, 48 dB\nwarning: layer.weight: codes and scales take more room than the weights did (channel); --min-params or --exclude leaves it as it is",
        ),
        accepted(
            "weights: one zero",
            weight(F32, &[1, 1], |_| 0.0),
            TENSOR,
            "layer.weight: int8 symmetric, tensor, minmax, 999 dB\nwarning: layer.weight: codes and scales take more room than the weights did (tensor); --min-params or --exclude leaves it as it is\nwarning: layer.weight: all its weights are zero, or below the smallest normal f32, which counts as zero",
        ),
        refused(
            "weights: rows that groups do not fit",
            weight(F32, &[8, 100], wave),
            INT4,
            "layer.weight: groups of 32 do not divide its rows of 100 weights; no power of two from 8 on does (--group-size, or --on-mismatch shrink|channel|keep)",
        ),
        accepted(
            "weights: rows that groups do not fit, and shrink",
            weight(F32, &[8, 72], wave),
            "quantize -m x.safetensors -o out.safetensors -f -b 4 --group-size 32 --on-mismatch shrink",
            "layer.weight: int4 symmetric, group 8, mse (group size shrunk from 32 to 8: rows have 72 weights), 27 dB\nnote: layer.weight: group size shrunk from 32 to 8: rows have 72 weights\nnote: vLLM's GPU kernels take groups of 32, 64 or 128 weights only",
        ),
        accepted(
            "weights: five dimensions",
            weight(F32, &[2, 2, 2, 2, 2], wave),
            "inspect x.safetensors",
            " tensor        kind  shape      size\n layer.weight  F32   2×2×2×2×2  128 B\n\n kind  tensors  size\n F32         1  128 B\nx.safetensors: 32 parameters, 128 B in 1 file",
        ),
        accepted(
            "weights: 2^31, planned",
            zeros(&[1 << 16, 1 << 15]),
            "quantize -m x.safetensors -o out.safetensors -f -b 4 --dry-run",
            "layer.weight: int4 symmetric, group 128, mse",
        ),
        accepted(
            "weights: 2^31 in one row, planned",
            zeros(&[1, 1 << 31]),
            "quantize -m x.safetensors -o out.safetensors -f --dry-run",
            "layer.weight: int8 symmetric, channel, minmax",
        ),
        refused(
            "weights: 2^31 rows in groups",
            zeros(&[1 << 31, 1]),
            INT4,
            "layer.weight: groups of 32 do not divide its rows of 1 weights; no power of two from 8 on does (--group-size, or --on-mismatch shrink|channel|keep)",
        ),
        refused(
            "weights: 2^42",
            zeros(&[1 << 21, 1 << 21]),
            "quantize -m x.safetensors -o out.safetensors -f --dry-run",
            "out.safetensors: too little disk: 4.4 TB are needed, …",
        ),
        accepted(
            "weights: 2^40, inspected",
            zeros(&[1 << 20, 1 << 20]),
            "inspect x.safetensors",
            " tensor        kind  shape            size\n layer.weight  BF16  1048576×1048576  2.2 TB\n\n kind  tensors  size\n BF16        1  2.2 TB\nx.safetensors: 1099511627776 parameters, 2.2 TB in 1 file",
        ),
        accepted(
            "weights: a row of 2^24",
            zeros(&[1, 1 << 24]),
            QUANTIZE,
            "layer.weight: int8 symmetric, channel, minmax, 999 dB\nwarning: layer.weight: all its weights are zero, or below the smallest normal f32, which counts as zero",
        ),
        accepted(
            "weights: 2^31",
            zeros(&[1 << 16, 1 << 15]),
            "quantize -m x.safetensors -o out.safetensors -f -b 4 --observer minmax",
            "layer.weight: int4 symmetric, group 128, minmax, 999 dB\nwarning: layer.weight: all its weights are zero, or below the smallest normal f32, which counts as zero",
        ),
    ]
}
