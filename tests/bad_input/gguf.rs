//! GGUF models.

use crate::{
    Case, accepted,
    gguf_files::*,
    inputs::{Make, file, sound, wave},
    refused,
};

const QUANTIZE: &str = "quantize -m x.gguf -o out.gguf -f --preset q4_0";

/// A sound model of one matrix, changed.
fn model(change: impl Fn(&mut Gguf)) -> Make {
    let mut gguf = sound_model();
    change(&mut gguf);
    file("x.gguf", gguf.bytes())
}

fn sound_model() -> Gguf {
    let keys = [string("general.architecture", "llama"), number("llama.block_count", 1)];
    Gguf::new(&keys, &[tensor("blk.0.ffn_up.weight", &[64, 4], F32, &[0; 1024])])
}

/// A model whose one matrix has these values.
fn weights(cols: u64, value: impl Fn(usize) -> f32) -> Make {
    let bytes: Vec<u8> = (0..cols as usize * 4).flat_map(|i| value(i).to_le_bytes()).collect();
    model(move |gguf| gguf.tensors[0] = tensor("blk.0.ffn_up.weight", &[cols, 4], F32, &bytes))
}

pub fn cases() -> Vec<Case> {
    let whole = sound_model().bytes();
    let head = sound_model().head().len();
    vec![
        refused(
            "gguf: empty",
            file("x.gguf", b""),
            QUANTIZE,
            "x.gguf: is empty; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        refused(
            "gguf: text",
            file("x.gguf", "these are no weights at all"),
            QUANTIZE,
            "x.gguf: begins like no checkpoint that is read; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        refused(
            "gguf: cut in the magic",
            file("x.gguf", b"GG"),
            QUANTIZE,
            "x.gguf: begins like no checkpoint that is read; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        refused(
            "gguf: cut in the counts",
            file("x.gguf", &whole[..20]),
            QUANTIZE,
            "x.gguf: the header is cut off at byte 20",
        ),
        refused(
            "gguf: cut in the key-values",
            file("x.gguf", &whole[..60]),
            QUANTIZE,
            "x.gguf: key `general.architecture` is cut off at byte 60",
        ),
        refused(
            "gguf: cut in the tensors' descriptions",
            file("x.gguf", &whole[..head - 9]),
            QUANTIZE,
            "x.gguf: tensor `blk.0.ffn_up.weight` is cut off at byte 152",
        ),
        refused(
            "gguf: cut before the data",
            file("x.gguf", &whole[..head]),
            QUANTIZE,
            "x.gguf: tensor `blk.0.ffn_up.weight`: its 1024 bytes from byte 0 of the data on reach past the end of the file, which has 0 bytes of data: cut off?",
        ),
        refused(
            "gguf: cut in the data",
            file("x.gguf", &whole[..whole.len() - 1]),
            QUANTIZE,
            "x.gguf: tensor `blk.0.ffn_up.weight`: its 1024 bytes from byte 0 of the data on reach past the end of the file, which has 1023 bytes of data: cut off?",
        ),
        refused(
            "gguf: version 1",
            model(|g| g.version = 1),
            QUANTIZE,
            "x.gguf: is GGUF version 1, which nothing reads any more; accepted: 2 and 3",
        ),
        refused(
            "gguf: version 2^24 (big-endian)",
            model(|g| g.version = 3 << 24),
            QUANTIZE,
            "x.gguf: is a big-endian GGUF file (version 3); accepted: little-endian, which gguf-py's gguf-convert-endian makes of it",
        ),
        refused(
            "gguf: 2^63 tensors",
            model(|g| g.counts.0 = Some(1 << 63)),
            QUANTIZE,
            "x.gguf: claims 9223372036854775808 tensors; accepted: up to 262144",
        ),
        refused(
            "gguf: 2^63 key-values",
            model(|g| g.counts.1 = Some(1 << 63)),
            QUANTIZE,
            "x.gguf: claims 9223372036854775808 key-values; accepted: up to 65536",
        ),
        refused(
            "gguf: no tensors",
            model(|g| g.tensors.clear()),
            QUANTIZE,
            "no tensor is left to change (there is no matrix); --include and --min-params choose others",
        ),
        refused(
            "gguf: a key of 2^62 bytes",
            model(|g| g.keys[1] = (1u64 << 62).to_le_bytes().to_vec()),
            QUANTIZE,
            "x.gguf: the name of key 1 claims 4611686018427387904 bytes; accepted: up to 65535",
        ),
        refused(
            "gguf: a key twice",
            model(|g| g.keys[1] = g.keys[0].clone()),
            QUANTIZE,
            "x.gguf: key `general.architecture` occurs twice",
        ),
        refused(
            "gguf: a value of an unknown type",
            model(|g| g.keys[1] = key("a", 99, &[0; 4])),
            QUANTIZE,
            "x.gguf: key `a` has a value of type 99; accepted: 0 to 12",
        ),
        refused(
            "gguf: an array of 2^62 items",
            model(|g| g.keys[1] = key("a", ARRAY, &array(U32, 1 << 62, &[]))),
            QUANTIZE,
            "x.gguf: claims 4611686018427387904 values in key `a`, and only 1090 bytes follow: cut off, or damaged",
        ),
        refused(
            "gguf: an alignment of 0",
            model(|g| g.keys[1] = number("general.alignment", 0)),
            QUANTIZE,
            "x.gguf: general.alignment is 0; accepted: a power of two",
        ),
        refused(
            "gguf: an alignment of 7",
            model(|g| g.keys[1] = number("general.alignment", 7)),
            QUANTIZE,
            "x.gguf: general.alignment is 7; accepted: a power of two",
        ),
        refused(
            "gguf: a tensor twice",
            model(|g| g.tensors.push(g.tensors[0].clone())),
            QUANTIZE,
            "x.gguf: tensor `blk.0.ffn_up.weight`: the name occurs twice",
        ),
        refused(
            "gguf: tensors that overlap",
            model(|g| {
                g.tensors.push(Tensor { offset: Some(32), ..tensor("b.weight", &[64, 4], F32, &[0; 1024]) })
            }),
            QUANTIZE,
            "x.gguf: tensor `b.weight`: its data begin at byte 32, within those of `blk.0.ffn_up.weight`, which end at 1024",
        ),
        refused(
            "gguf: a tensor beyond the file",
            model(|g| g.tensors[0].offset = Some(1 << 40)),
            QUANTIZE,
            "x.gguf: tensor `blk.0.ffn_up.weight`: its 1024 bytes from byte 1099511627776 of the data on reach past the end of the file, which has 1024 bytes of data: cut off?",
        ),
        refused(
            "gguf: an offset between multiples",
            model(|g| g.tensors[0].offset = Some(4)),
            QUANTIZE,
            "x.gguf: tensor `blk.0.ffn_up.weight`: its offset 4 is no multiple of the alignment 32",
        ),
        refused(
            "gguf: five dimensions",
            model(|g| g.tensors[0].dims = vec![4, 4, 4, 2, 2]),
            QUANTIZE,
            "x.gguf: tensor `blk.0.ffn_up.weight`: it has 5 dimensions; accepted: up to 4",
        ),
        refused(
            "gguf: more weights than 64 bits can count",
            model(|g| g.tensors[0].dims = vec![1 << 40, 1 << 40]),
            QUANTIZE,
            "x.gguf: tensor `blk.0.ffn_up.weight`: shape [1099511627776, 1099511627776] has more bytes than can be",
        ),
        refused(
            "gguf: an unknown type of tensors",
            model(|g| g.tensors[0].kind = 999),
            QUANTIZE,
            "x.gguf: tensor `blk.0.ffn_up.weight`: type 999 is unknown; accepted: F32, F16, BF16, F64, I8, I16, I32, I64, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K",
        ),
        refused(
            "gguf: rows of half a block",
            model(|g| g.tensors[0] = tensor("blk.0.ffn_up.weight", &[16, 4], Q8_0, &[0; 136])),
            QUANTIZE,
            "x.gguf: tensor `blk.0.ffn_up.weight`: rows of 16 weights are no whole blocks of Q8_0, which have 32",
        ),
        refused(
            "gguf: a name that is not UTF-8",
            model(|g| g.tensors[0].name = b"\xff\xfe".to_vec()),
            QUANTIZE,
            "x.gguf: the name of tensor 0 is not UTF-8: `��`",
        ),
        refused(
            "gguf: quantized already",
            model(|g| g.tensors[0] = tensor("blk.0.ffn_up.weight", &[64, 4], Q8_0, &[0; 272])),
            QUANTIZE,
            "blk.0.ffn_up.weight: the model is already quantized (Q8_0); quantizing twice loses twice, so take the F32, F16 or BF16 GGUF that it was made of (monoquant dequantize makes floats of this one, without what was lost)",
        ),
        refused(
            "gguf: part 1 of 2",
            model(|g| {
                g.keys.extend([
                    key("split.count", U16, &[2, 0]),
                    key("split.no", U16, &[0, 0]),
                    key("split.tensors.count", I32, &[2, 0, 0, 0]),
                ])
            }),
            QUANTIZE,
            "x.gguf: is shard 1 of 2 of a split model, and its name does not say so; accepted: NAME-00001-of-00002.gguf",
        ),
        refused(
            "gguf: a preset of another format",
            model(|_| {}),
            "quantize -m x.gguf -o out.gguf -f --preset w4a16",
            "w4a16 makes int4 or int8 codes with scales in tensors of their own, which no GGUF file holds; of a GGUF model accepted: --preset fp16, bf16, q8_0, q4_0, q4_1, q4_k_s, q4_k_m, q6_k",
        ),
        refused(
            "gguf: an output of another format",
            model(|_| {}),
            "quantize -m x.gguf -o out.safetensors -f --preset q4_0",
            "out.safetensors: only GGUF files hold blocks; accepted: --output NAME.gguf",
        ),
        refused(
            "gguf: a preset for a model that is none",
            sound(),
            "quantize -m x.safetensors -o out.gguf -f --preset q4_0",
            "q4_0 writes GGUF, which needs a GGUF model: tokenizer and architecture lie in it, as llama.cpp's convert_hf_to_gguf.py --outtype f16 (or bf16, f32) makes it of a model's directory; of other checkpoints accepted: --preset w4a16, w8a16, w8a8, fp16, bf16",
        ),
        refused(
            "gguf: an output of a model that is none",
            sound(),
            "quantize -m x.safetensors -o out.gguf -f",
            "out.gguf: a GGUF file also says how the model is built, and holds its tokenizer; accepted: a GGUF model as input (llama.cpp's convert_hf_to_gguf.py makes it), or --output NAME.safetensors",
        ),
        refused(
            "gguf: converted",
            model(|_| {}),
            "convert -m x.gguf -o out -f --format gptq",
            "a GGUF model: its tensors have names and an order of rows of their own, which loaders of these layouts do not know; quantize the model that it was made from",
        ),
        refused(
            "gguf: NaN",
            weights(64, |i| if i == 70 { f32::NAN } else { 1.0 }),
            QUANTIZE,
            "blk.0.ffn_up.weight: 1 value is not finite (NaN or infinity), the first at index 70; --on-nonfinite keep leaves the tensor as it is",
        ),
        refused(
            "gguf: weights that f16 scales cannot hold",
            weights(64, |i| if i == 70 { 1e30 } else { 1.0 }),
            QUANTIZE,
            "blk.0.ffn_up.weight: 1 block from row 0 on needs scales beyond the largest F16, which Q4_0 stores; leave the tensor out with --exclude, or scale its weights down",
        ),
        refused(
            "gguf: NaN in blocks",
            model(|g| g.tensors[0] = tensor("blk.0.ffn_up.weight", &[64, 4], Q8_0, &[255; 272])),
            "dequantize -m x.gguf -o out.gguf -f",
            "blk.0.ffn_up.weight: codes times scales overflow F32; the scales are damaged",
        ),
        accepted(
            "gguf: rows that are no blocks",
            weights(33, wave),
            QUANTIZE,
            "blk.0.ffn_up.weight: cast to F16 (rows of 33 weights are no whole blocks of 32)\nnote: blk.0.ffn_up.weight: cast to F16: rows of 33 weights are no whole blocks of 32",
        ),
        accepted(
            "gguf: zeros",
            weights(64, |_| 0.0),
            QUANTIZE,
            "blk.0.ffn_up.weight: Q4_0, 999 dB\nwarning: blk.0.ffn_up.weight: all its weights are zero, or below the smallest normal f32, which counts as zero",
        ),
        accepted(
            "gguf: subnormal weights",
            weights(64, |i| f32::from_bits(i as u32)),
            QUANTIZE,
            "blk.0.ffn_up.weight: Q4_0, 999 dB\nwarning: blk.0.ffn_up.weight: all its weights are zero, or below the smallest normal f32, which counts as zero",
        ),
    ]
}
