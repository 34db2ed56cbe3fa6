//! Safetensors files.

use crate::{Case, DIRECTORY, QUANTIZE, accepted, inputs::*, refused};

/// Files cut off at each of their boundaries.
fn cut(length: usize) -> Make {
    let whole = header(r#"{"layer.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, 16);
    file("x.safetensors", &whole[..length])
}

pub fn cases() -> Vec<Case> {
    const GOOD: &str = r#"{"layer.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    let spaced = format!("        {GOOD}");
    vec![
        refused(
            "safetensors: empty",
            cut(0),
            QUANTIZE,
            "x.safetensors: is empty; accepted: a safetensors file",
        ),
        refused(
            "safetensors: cut in the length",
            cut(7),
            QUANTIZE,
            "x.safetensors: has 7 bytes; a safetensors file begins with an 8-byte length",
        ),
        refused(
            "safetensors: cut after the length",
            cut(8),
            QUANTIZE,
            "x.safetensors: the header claims 68 bytes, and only 0 follow: cut off, or not a safetensors file",
        ),
        refused(
            "safetensors: cut in the header",
            cut(30),
            QUANTIZE,
            "x.safetensors: the header claims 68 bytes, and only 22 follow: cut off, or not a safetensors file",
        ),
        refused(
            "safetensors: cut after the header",
            cut(8 + GOOD.len()),
            QUANTIZE,
            "x.safetensors: tensor `layer.weight`: its data end at byte 16, and the file holds 0 bytes of data: cut off?",
        ),
        refused(
            "safetensors: cut in the data",
            cut(8 + GOOD.len() + 15),
            QUANTIZE,
            "x.safetensors: tensor `layer.weight`: its data end at byte 16, and the file holds 15 bytes of data: cut off?",
        ),
        refused(
            "safetensors: bytes behind the data",
            headed(GOOD, 17),
            QUANTIZE,
            "x.safetensors: 1 bytes follow the last tensor; safetensors allows none",
        ),
        refused(
            "safetensors: no header",
            file("x.safetensors", [0; 8]),
            QUANTIZE,
            "x.safetensors: the header is not a JSON object: it does not begin with `{`",
        ),
        refused(
            "safetensors: a header of 2^64 - 1 bytes",
            file("x.safetensors", [255; 64]),
            QUANTIZE,
            "x.safetensors: the header claims 18446744073709551615 bytes, and only 56 follow: cut off, or not a safetensors file",
        ),
        refused(
            "safetensors: a header of 200 MB",
            sparse("x.safetensors", 1 << 30, 200_000_000u64.to_le_bytes()),
            QUANTIZE,
            "x.safetensors: the header claims 200000000 bytes; accepted: up to 100000000",
        ),
        refused(
            "safetensors: spaces before the header",
            headed(&spaced, 16),
            QUANTIZE,
            "x.safetensors: the header is not a JSON object: it does not begin with `{`",
        ),
        refused(
            "safetensors: text",
            file("x.safetensors", "these are no weights at all"),
            QUANTIZE,
            "x.safetensors: the header claims 8241904413164529780 bytes, and only 19 follow: cut off, or not a safetensors file",
        ),
        refused(
            "safetensors: no JSON",
            headed("{garbage}", 0),
            QUANTIZE,
            "x.safetensors: the header is not as safetensors prescribes: key must be a string at line 1 column 2",
        ),
        refused(
            "safetensors: JSON cut off",
            headed(&GOOD[..40], 16),
            QUANTIZE,
            "x.safetensors: the header is not as safetensors prescribes: `layer.weight`: `shape`: EOF while parsing a list at line 1 column 40",
        ),
        refused(
            "safetensors: JSON twice",
            headed(&GOOD.repeat(2), 16),
            QUANTIZE,
            "x.safetensors: the header is not as safetensors prescribes: trailing characters at line 1 column 69",
        ),
        refused(
            "safetensors: deep JSON",
            headed(&deep("a"), 0),
            QUANTIZE,
            "x.safetensors: the header is not as safetensors prescribes: `a`: `a`: invalid type: map, expected a string, or an array of whole numbers from 0 to 2^64 - 1 at line 1 column 11",
        ),
        refused(
            "safetensors: a list",
            headed("[]", 0),
            QUANTIZE,
            "x.safetensors: the header is not a JSON object: it does not begin with `{`",
        ),
        refused(
            "safetensors: not UTF-8",
            file("x.safetensors", [&3u64.to_le_bytes()[..], b"{\xff}"].concat()),
            QUANTIZE,
            "x.safetensors: the header is not UTF-8: invalid utf-8 sequence of 1 bytes from index 1",
        ),
        refused(
            "safetensors: no tensors",
            headed("{}", 0),
            QUANTIZE,
            "no layer is left to quantize (there is no matrix); --include, --layer-types and --min-params choose others",
        ),
        refused(
            "safetensors: a tensor that is null",
            headed(r#"{"layer.weight":null}"#, 0),
            QUANTIZE,
            "x.safetensors: tensor `layer.weight`: null instead of an object",
        ),
        refused(
            "safetensors: a tensor that is a number",
            headed(r#"{"layer.weight":7}"#, 0),
            QUANTIZE,
            "x.safetensors: the header is not as safetensors prescribes: `layer.weight`: invalid type: integer `7`, expected a JSON object at line 1 column 17",
        ),
        refused(
            "safetensors: a tensor of nothing",
            headed(r#"{"layer.weight":{}}"#, 0),
            QUANTIZE,
            "x.safetensors: tensor `layer.weight`: `dtype` is missing",
        ),
        refused(
            "safetensors: no shape",
            headed(r#"{"layer.weight":{"dtype":"F32","data_offsets":[0,16]}}"#, 16),
            QUANTIZE,
            "x.safetensors: tensor `layer.weight`: `shape` is missing",
        ),
        refused(
            "safetensors: no offsets",
            headed(r#"{"layer.weight":{"dtype":"F32","shape":[2,2]}}"#, 16),
            QUANTIZE,
            "x.safetensors: tensor `layer.weight`: `data_offsets` is missing",
        ),
        refused(
            "safetensors: three offsets",
            headed(&GOOD.replace("[0,16]", "[0,8,16]"), 16),
            QUANTIZE,
            "x.safetensors: tensor `layer.weight`: `data_offsets` has 3 numbers instead of 2",
        ),
        refused(
            "safetensors: offsets the wrong way round",
            headed(&GOOD.replace("[0,16]", "[16,0]"), 16),
            QUANTIZE,
            "x.safetensors: tensor `layer.weight`: its data begin at byte 16, after their end at 0",
        ),
        refused(
            "safetensors: offsets beyond the file",
            headed(&GOOD.replace("[2,2]", "[4,4]").replace("16]", "64]"), 16),
            QUANTIZE,
            "x.safetensors: tensor `layer.weight`: its data end at byte 64, and the file holds 16 bytes of data: cut off?",
        ),
        refused(
            "safetensors: offsets that overflow",
            headed(&GOOD.replace("16]", "18446744073709551615]"), 16),
            QUANTIZE,
            "x.safetensors: tensor `layer.weight`: shape [2, 2] of F32 takes 16 bytes, and `data_offsets` spans 18446744073709551615",
        ),
        refused(
            "safetensors: offsets of more than 64 bits",
            headed(&GOOD.replace("16]", "99999999999999999999]"), 16),
            QUANTIZE,
            "x.safetensors: the header is not as safetensors prescribes: `layer.weight`: `data_offsets`: invalid type: floating point `1e+20`, expected u64 at line 1 column 83",
        ),
        refused(
            "safetensors: offsets of another length",
            headed(&GOOD.replace("[2,2]", "[2,3]"), 16),
            QUANTIZE,
            "x.safetensors: tensor `layer.weight`: shape [2, 3] of F32 takes 24 bytes, and `data_offsets` spans 16",
        ),
        refused(
            "safetensors: negative dimensions",
            headed(&GOOD.replace("[2,2]", "[-2,-2]"), 16),
            QUANTIZE,
            "x.safetensors: the header is not as safetensors prescribes: `layer.weight`: `shape`: invalid value: integer `-2`, expected u64 at line 1 column 42",
        ),
        refused(
            "safetensors: dimensions that are no whole numbers",
            headed(&GOOD.replace("[2,2]", "[2.5,2]"), 16),
            QUANTIZE,
            "x.safetensors: the header is not as safetensors prescribes: `layer.weight`: `shape`: invalid type: floating point `2.5`, expected u64 at line 1 column 43",
        ),
        refused(
            "safetensors: more bytes than 64 bits can count",
            headed(&GOOD.replace("[2,2]", "[4294967296,4294967296]"), 16),
            QUANTIZE,
            "x.safetensors: tensor `layer.weight`: shape [4294967296, 4294967296] has more bytes than 64 bits can count",
        ),
        refused(
            "safetensors: an unknown dtype",
            headed(&GOOD.replace("F32", "X32"), 16),
            QUANTIZE,
            "x.safetensors: tensor `layer.weight`: dtype `X32` is unknown; accepted: BOOL, U8, I8, F8_E4M3, F8_E5M2, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ, U16, I16, F16, BF16, U32, I32, F32, U64, I64, F64, C64",
        ),
        refused(
            "safetensors: a dtype that is not read",
            headed(&GOOD.replace("F32", "F4"), 16),
            QUANTIZE,
            "x.safetensors: tensor `layer.weight`: dtype F4 is not supported; accepted: BOOL, U8, I8, F8_E4M3, F8_E5M2, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ, U16, I16, F16, BF16, U32, I32, F32, U64, I64, F64, C64",
        ),
        refused(
            "safetensors: a dtype that is a number",
            headed(&GOOD.replace(r#""F32""#, "32"), 16),
            QUANTIZE,
            "x.safetensors: the header is not as safetensors prescribes: `layer.weight`: `dtype`: invalid type: integer `32`, expected a string, or an array of whole numbers from 0 to 2^64 - 1 at line 1 column 27",
        ),
        refused(
            "safetensors: tensors that overlap",
            headed(
                r#"{"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[8,24]}}"#,
                24,
            ),
            QUANTIZE,
            "x.safetensors: tensor `b.weight`: its data begin at byte 8, within those of a.weight",
        ),
        refused(
            "safetensors: a hole between tensors",
            headed(
                r#"{"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[24,40]}}"#,
                40,
            ),
            QUANTIZE,
            "x.safetensors: tensor `b.weight`: its data begin at byte 24, and those of a.weight end at 16; safetensors allows no holes",
        ),
        refused(
            "safetensors: a name twice",
            headed(&format!("{{{0},{0}}}", &GOOD[1..GOOD.len() - 1]), 16),
            QUANTIZE,
            "x.safetensors: the header is not as safetensors prescribes: `layer.weight` occurs twice at line 1 column 82",
        ),
        refused(
            "safetensors: a key twice",
            headed(&GOOD.replace(r#""dtype""#, r#""shape":[2,2],"dtype""#), 16),
            QUANTIZE,
            "x.safetensors: the header is not as safetensors prescribes: `layer.weight`: `shape` occurs twice at line 1 column 52",
        ),
        refused(
            "safetensors: metadata that are no strings",
            headed(r#"{"__metadata__":{"a":[1]}}"#, 0),
            QUANTIZE,
            "x.safetensors: `__metadata__`: the value of `a` is no string",
        ),
        refused(
            "safetensors: integers only",
            headed(&GOOD.replace("F32", "I32"), 16),
            QUANTIZE,
            "no layer is left to quantize (layer.weight: not a float (I32)); --include, --layer-types and --min-params choose others",
        ),
        refused(
            "safetensors: weights of 64 bits",
            headed(r#"{"layer.weight":{"dtype":"F64","shape":[2,2],"data_offsets":[0,32]}}"#, 32),
            QUANTIZE,
            "layer.weight: F64 cannot be quantized; F32, F16 and BF16 weights are accepted, --exclude leaves the layer as it is",
        ),
        accepted(
            "safetensors: the name of a torch file",
            file("x.bin", header(GOOD, 16)),
            "quantize -m x.bin -o out.safetensors -f",
            "layer.weight: int8 symmetric, channel, minmax, 999 dB\nwarning: layer.weight: all its weights are zero, or below the smallest normal f32, which counts as zero",
        ),
        accepted(
            "safetensors: no name of a checkpoint",
            file("x.weights", header(GOOD, 16)),
            "quantize -m x.weights -o out.safetensors -f",
            "layer.weight: int8 symmetric, channel, minmax, 999 dB\nwarning: layer.weight: all its weights are zero, or below the smallest normal f32, which counts as zero",
        ),
        refused(
            "safetensors: a directory in the place of the file",
            directory("x.safetensors"),
            QUANTIZE,
            "x.safetensors: has no weights; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        accepted(
            "safetensors: a file in the place of the directory",
            file("x", header(GOOD, 16)),
            DIRECTORY,
            "layer.weight: int8 symmetric, channel, minmax, 999 dB\nwarning: layer.weight: all its weights are zero, or below the smallest normal f32, which counts as zero",
        ),
        accepted(
            "safetensors: control characters in a name",
            headed(&GOOD.replace("layer.weight", "\\u001b[2Jlayer.weight"), 16),
            "inspect x.safetensors",
            " tensor            kind  shape  size\n \\u{1b}[2Jlayer.weight  F32   2×2    16 B\n\n kind  tensors  size\n F32         1  16 B\nx.safetensors: 4 parameters, 16 B in 1 file",
        ),
        refused(
            "safetensors: inspect",
            cut(30),
            "inspect x.safetensors",
            "x.safetensors: the header claims 68 bytes, and only 22 follow: cut off, or not a safetensors file",
        ),
        refused(
            "safetensors: compare",
            cut(30),
            "compare x.safetensors x.safetensors",
            "x.safetensors: the header claims 68 bytes, and only 22 follow: cut off, or not a safetensors file",
        ),
        refused(
            "safetensors: validate",
            cut(30),
            "validate x.safetensors",
            "x.safetensors: the header claims 68 bytes, and only 22 follow: cut off, or not a safetensors file",
        ),
        refused(
            "safetensors: dequantize",
            cut(30),
            "dequantize -m x.safetensors -o out.safetensors -f",
            "x.safetensors: the header claims 68 bytes, and only 22 follow: cut off, or not a safetensors file",
        ),
        refused(
            "safetensors: convert",
            cut(30),
            "convert --format awq -m x.safetensors -o out -f",
            "x.safetensors: the header claims 68 bytes, and only 22 follow: cut off, or not a safetensors file",
        ),
    ]
}
