//! Options of all commands that make no sense: sizes, devices; and the other commands.

use crate::{Case, accepted, inputs::*, refused};

/// Drivers of GPUs take addresses as they like, in KiB.
const MACHINES: u64 = 64 << 20;

pub fn cases() -> Vec<Case> {
    vec![
        refused(
            "shard size: 0",
            sound(),
            "quantize -m x.safetensors --max-shard-size 0",
            "invalid value '0' for '--max-shard-size <SIZE>': accepted is a size above 0, such as 512MiB or 5GB",
        ),
        refused(
            "shard size: negative",
            sound(),
            "quantize -m x.safetensors --max-shard-size=-5GB",
            "invalid value '-5GB' for '--max-shard-size <SIZE>': accepted is a size above 0, such as 512MiB or 5GB",
        ),
        refused(
            "shard size: a word",
            sound(),
            "quantize -m x.safetensors --max-shard-size large",
            "invalid value 'large' for '--max-shard-size <SIZE>': accepted is a size above 0, such as 512MiB or 5GB",
        ),
        refused(
            "shard size: 0 to dequantize",
            nothing(),
            "dequantize -m x --max-shard-size 0 -o out -f",
            "invalid value '0' for '--max-shard-size <SIZE>': accepted is a size above 0, such as 512MiB or 5GB",
        ),
        refused(
            "shard size: 0 to convert",
            nothing(),
            "convert -m x --format gptq --max-shard-size 0 -o out -f",
            "invalid value '0' for '--max-shard-size <SIZE>': accepted is a size above 0, such as 512MiB or 5GB",
        ),
        refused(
            "memory: 1 MiB",
            sound(),
            "quantize -m x.safetensors --max-memory 1MiB",
            "--max-memory 1.0 MiB: at least 32MiB are needed",
        ),
        refused(
            "memory: none",
            sound(),
            "quantize -m x.safetensors --max-memory 0",
            "invalid value '0' for '--max-memory <SIZE>': accepted is a size above 0, such as 512MiB or 5GB",
        ),
        refused(
            "memory: a word",
            sound(),
            "quantize -m x.safetensors --max-memory much",
            "invalid value 'much' for '--max-memory <SIZE>': accepted is a size above 0, such as 512MiB or 5GB",
        ),
        refused(
            "memory: of another unit",
            sound(),
            "quantize -m x.safetensors --max-memory 4parsecs",
            "invalid value '4parsecs' for '--max-memory <SIZE>': accepted is a size above 0, such as 512MiB or 5GB",
        ),
        refused(
            "memory: a tile of nothing",
            sound(),
            "quantize -m x.safetensors --tile-bytes 0",
            "invalid value '0' for '--tile-bytes <TILE_BYTES>': accepted is a size above 0, such as 512MiB or 5GB",
        ),
        accepted(
            "memory: more than 64 bits can count",
            sound(),
            "quantize -m x.safetensors -o out.safetensors -f --max-memory 99999999999TB",
            "layer.weight: int8 symmetric, channel, minmax, 50 dB",
        ),
        refused(
            "device: unknown",
            sound(),
            "quantize -m x.safetensors -o out.safetensors -f --device abacus",
            "--device abacus: no such adapter; there are…",
        )
        .addresses(MACHINES),
        refused(
            "device: empty",
            sound(),
            "quantize -m x.safetensors -o out.safetensors -f --device ''",
            "--device : a name is missing between commas; there are…",
        )
        .addresses(MACHINES),
        refused(
            "device: number 99",
            sound(),
            "quantize -m x.safetensors -o out.safetensors -f --device gpu:99",
            "--device gpu:99: no GPU has the number 99; there are…",
        )
        .addresses(MACHINES),
        refused(
            "device: no number",
            sound(),
            "quantize -m x.safetensors -o out.safetensors -f --device gpu:x",
            "--device gpu:x: no such adapter; there are…",
        )
        .addresses(MACHINES),
        refused(
            "device: twice",
            sound(),
            "quantize -m x.safetensors -o out.safetensors -f --device cpu,cpu",
            "--device cpu,cpu: names the CPU twice, which shares nothing; name every device once",
        )
        .addresses(MACHINES),
        refused(
            "device: a comma",
            sound(),
            "quantize -m x.safetensors -o out.safetensors -f --device ,",
            "--device ,: a name is missing between commas; there are…",
        )
        .addresses(MACHINES),
        refused(
            "dequantize: an unknown dtype",
            model(),
            "dequantize -m x --dtype f64",
            "invalid value 'f64' for '--dtype <DTYPE>'\n  [possible values: f32, f16, bf16]",
        ),
        refused(
            "convert: no format",
            model(),
            "convert -m x",
            "the following required arguments were not provided:\n  --format <FORMATS>",
        ),
        refused(
            "convert: an unknown format",
            model(),
            "convert -m x --format exl2",
            "invalid value 'exl2' for '--format <FORMATS>'\n  [possible values: compressed-tensors, gptq, awq]",
        ),
        refused(
            "convert: a format twice",
            model(),
            "convert -m x --format awq,awq",
            "--format awq,awq: awq is there twice",
        ),
        refused(
            "inspect: no model",
            nothing(),
            "inspect",
            "the following required arguments were not provided:\n  --model <CHECKPOINT>",
        ),
        refused(
            "inspect: the model twice",
            model(),
            "inspect x -m x",
            "the argument '[CHECKPOINT]' cannot be used with '--model <CHECKPOINT>'",
        ),
        refused(
            "validate: no model",
            nothing(),
            "validate",
            "the following required arguments were not provided:\n  --model <CHECKPOINT>",
        ),
        refused(
            "compare: one model",
            model(),
            "compare x",
            "the following required arguments were not provided:\n  <B>",
        ),
        refused("compare: three models", model(), "compare x x x", "unexpected argument 'x' found"),
        refused("devices: a word", nothing(), "devices all", "unexpected argument 'all' found"),
        refused(
            "calibrate: without the Python package",
            nothing(),
            "calibrate --program m.pt2 --data d.pt",
            "calibrate runs a model, and so needs torch; accepted: pip install mono-quant, and its monoquant calibrate",
        ),
    ]
}
