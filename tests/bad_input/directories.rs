//! Directories: shards and their index, config.json, links.

use crate::{Case, DIRECTORY, accepted, failed, inputs::*, refused};
use monoquant::tensor::Float;
use serde_json::json;

/// `x` with two shards of one weight each, and an index.
fn shards() -> Make {
    let shard = |name: &str| [(name.to_owned(), tensor(Float::F32, &[8, 64], wave))].into();
    all([
        tensors("x/a.safetensors", shard("a.weight")),
        tensors("x/b.safetensors", shard("b.weight")),
        index(json!({"a.weight": "a.safetensors", "b.weight": "b.safetensors"})),
    ])
}

fn config(text: impl AsRef<[u8]>) -> Make {
    all([model(), file("x/config.json", text)])
}

pub fn cases() -> Vec<Case> {
    const INDEX: &str = "x/model.safetensors.index.json";
    let indexed = |map| all([shards(), index(map)]);
    vec![
        refused(
            "directory: none",
            nothing(),
            DIRECTORY,
            "x: no such file or directory; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        refused(
            "directory: empty",
            directory("x"),
            DIRECTORY,
            "x: has no weights; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        refused(
            "directory: weights of other formats only",
            file("x/model.h5", "weights"),
            DIRECTORY,
            "x: has no weights that are read, only `model.h5`; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        accepted(
            "directory: two files without an index",
            all([shards(), without(INDEX)]),
            DIRECTORY,
            "a.weight: int8 symmetric, channel, minmax, 50 dB\nb.weight: int8 symmetric, channel, minmax, 50 dB\nwarning: every matrix was quantized, embeddings and output head (if any) too; these usually cost accuracy",
        ),
        refused(
            "directory: a shard is missing",
            all([shards(), without("x/b.safetensors")]),
            DIRECTORY,
            "x/model.safetensors.index.json: 1 of 2 files are missing: b.safetensors; download them again",
        ),
        refused(
            "directory: all shards are missing",
            all([shards(), without("x/a.safetensors"), without("x/b.safetensors")]),
            DIRECTORY,
            "x/model.safetensors.index.json: 2 of 2 files are missing: a.safetensors, b.safetensors; download them again",
        ),
        refused(
            "directory: a shard is cut off",
            all([shards(), file("x/b.safetensors", [9, 0, 0])]),
            DIRECTORY,
            "x/b.safetensors: has 3 bytes; a safetensors file begins with an 8-byte length",
        ),
        refused(
            "directory: a shard is a directory",
            all([shards(), without("x/b.safetensors"), directory("x/b.safetensors")]),
            DIRECTORY,
            "x/model.safetensors.index.json: 1 of 2 files are missing: b.safetensors; download them again",
        ),
        refused(
            "directory: a shard is a link in a circle",
            all([shards(), without("x/b.safetensors"), link("x/b.safetensors", "b.safetensors")]),
            DIRECTORY,
            "x/model.safetensors.index.json: 1 of 2 files are missing: b.safetensors; download them again",
        ),
        refused(
            "directory: a shard is a link to nowhere",
            all([shards(), without("x/b.safetensors"), link("x/b.safetensors", "nowhere")]),
            DIRECTORY,
            "x/model.safetensors.index.json: 1 of 2 files are missing: b.safetensors; download them again",
        ),
        refused(
            "directory: two files with one name, without an index",
            all([
                shards(),
                without(INDEX),
                without("x/b.safetensors"),
                link("x/b.safetensors", "a.safetensors"),
            ]),
            DIRECTORY,
            "x/b.safetensors: tensor `a.weight` is also in x/a.safetensors",
        ),
        accepted(
            "directory: two shards with one name",
            all([
                shards(),
                tensors(
                    "x/b.safetensors",
                    [
                        ("a.weight".into(), tensor(Float::F32, &[8, 64], wave)),
                        ("b.weight".into(), tensor(Float::F32, &[8, 64], wave)),
                    ]
                    .into(),
                ),
            ]),
            DIRECTORY,
            "a.weight: int8 symmetric, channel, minmax, 50 dB\nb.weight: int8 symmetric, channel, minmax, 50 dB\nwarning: every matrix was quantized, embeddings and output head (if any) too; these usually cost accuracy",
        ),
        refused(
            "index: empty",
            all([shards(), file(INDEX, "")]),
            DIRECTORY,
            "x/model.safetensors.index.json: is not the JSON expected here: EOF while parsing a value at line 1 column 0",
        ),
        refused(
            "index: garbage",
            all([shards(), file(INDEX, "not JSON")]),
            DIRECTORY,
            "x/model.safetensors.index.json: is not the JSON expected here: expected ident at line 1 column 2",
        ),
        refused(
            "index: deep JSON",
            all([shards(), file(INDEX, deep("weight_map"))]),
            DIRECTORY,
            "x/model.safetensors.index.json: is not the JSON expected here: `weight_map`: invalid type: map, expected a string at line 1 column 28",
        ),
        refused(
            "index: not UTF-8",
            all([shards(), file(INDEX, b"{\"weight_map\": {\"\xff\": \"a.safetensors\"}}")]),
            DIRECTORY,
            "x/model.safetensors.index.json: is not the JSON expected here: invalid unicode code point at line 1 column 18",
        ),
        refused(
            "index: a list",
            all([shards(), file(INDEX, "[]")]),
            DIRECTORY,
            "x/model.safetensors.index.json: is not the JSON expected here: invalid length 0, expected an object with `weight_map` at line 1 column 2",
        ),
        refused(
            "index: without a map",
            all([shards(), file(INDEX, r#"{"metadata":{}}"#)]),
            DIRECTORY,
            "x/model.safetensors.index.json: is not the JSON expected here: missing field `weight_map` at line 1 column 15",
        ),
        refused(
            "index: no tensors",
            indexed(json!({})),
            DIRECTORY,
            "x/model.safetensors.index.json: `weight_map` lists no tensors",
        ),
        refused(
            "index: a tensor that is in no file",
            indexed(
                json!({"a.weight": "a.safetensors", "b.weight": "b.safetensors", "c.weight": "a.safetensors"}),
            ),
            DIRECTORY,
            "x/a.safetensors: lacks what x/model.safetensors.index.json promises to be there: `c.weight`",
        ),
        refused(
            "index: a tensor in another file",
            indexed(json!({"a.weight": "b.safetensors", "b.weight": "b.safetensors"})),
            DIRECTORY,
            "x/b.safetensors: lacks what x/model.safetensors.index.json promises to be there: `a.weight`",
        ),
        accepted(
            "index: a tensor that it does not list",
            indexed(json!({"a.weight": "a.safetensors"})),
            DIRECTORY,
            "a.weight: int8 symmetric, channel, minmax, 50 dB",
        ),
        refused(
            "index: a file outside",
            indexed(json!({"a.weight": "../out.safetensors"})),
            DIRECTORY,
            "x/model.safetensors.index.json: tensor `a.weight` is said to lie in `../out.safetensors`; accepted: a file in the directory",
        ),
        refused(
            "index: an absolute path",
            indexed(json!({"a.weight": "/etc/passwd"})),
            DIRECTORY,
            "x/model.safetensors.index.json: tensor `a.weight` is said to lie in `/etc/passwd`; accepted: a file in the directory",
        ),
        refused(
            "index: another kind of file",
            indexed(json!({"a.weight": "a.bin"})),
            DIRECTORY,
            "x/model.safetensors.index.json: tensor `a.weight` is said to lie in `a.bin`, which is no .safetensors file",
        ),
        refused(
            "index: numbers",
            indexed(json!({"a.weight": 1})),
            DIRECTORY,
            "x/model.safetensors.index.json: is not the JSON expected here: `a.weight`: invalid type: integer `1`, expected a string at line 1 column 41",
        ),
        accepted(
            "index: a directory in its place",
            all([shards(), without(INDEX), directory(INDEX)]),
            DIRECTORY,
            "a.weight: int8 symmetric, channel, minmax, 50 dB\nb.weight: int8 symmetric, channel, minmax, 50 dB\nwarning: every matrix was quantized, embeddings and output head (if any) too; these usually cost accuracy",
        ),
        refused(
            "index: 100 MB",
            all([shards(), sparse(INDEX, 100_000_001, b"")]),
            DIRECTORY,
            "x/model.safetensors.index.json: is larger than 100000000 bytes",
        )
        .addresses(512 << 10),
        refused(
            "config.json: empty",
            config(""),
            DIRECTORY,
            "x/config.json: is not the JSON expected here: EOF while parsing a value at line 1 column 0",
        ),
        refused(
            "config.json: garbage",
            config("{model_type: llama}"),
            DIRECTORY,
            "x/config.json: is not the JSON expected here: key must be a string at line 1 column 2",
        ),
        refused(
            "config.json: cut off",
            config(r#"{"model_type": "lla"#),
            DIRECTORY,
            "x/config.json: is not the JSON expected here: EOF while parsing a string at line 1 column 19",
        ),
        refused("config.json: a list", config("[1, 2]"), DIRECTORY, "x/config.json: is not a JSON object"),
        refused(
            "config.json: deep JSON",
            config(deep("a")),
            DIRECTORY,
            "x/config.json: is not the JSON expected here: recursion limit exceeded at line 1 column 636",
        ),
        refused(
            "config.json: not UTF-8",
            config(b"{\"model_type\": \"\xff\"}"),
            DIRECTORY,
            "x/config.json: is not the JSON expected here: invalid unicode code point at line 1 column 17",
        ),
        failed(
            "config.json: a directory",
            all([model(), without("x/config.json"), directory("x/config.json")]),
            DIRECTORY,
            "x/config.json: cannot read: Is a directory (os error 21)",
        ),
        refused(
            "config.json: 100 MB",
            all([model(), sparse("x/config.json", 100_000_001, b"")]),
            DIRECTORY,
            "x/config.json: is larger than 100000000 bytes",
        )
        .addresses(512 << 10),
        refused(
            "config.json: says quantized",
            config(r#"{"quantization_config": {"quant_method": "bitsandbytes"}}"#),
            DIRECTORY,
            "the checkpoint is already quantized: config.json has a quantization_config (bitsandbytes); monoquant dequantize makes floats of what it can read",
        ),
        accepted(
            "config.json: values of other types",
            config(r#"{"model_type": 7, "hidden_size": "x", "vocab_size": -1, "architectures": {}}"#),
            DIRECTORY,
            "layer.weight: int8 symmetric, channel, minmax, 50 dB",
        ),
        accepted(
            "links in circles",
            all([model(), link("x/again", "."), link("x/loop", "loop")]),
            DIRECTORY,
            "layer.weight: int8 symmetric, channel, minmax, 50 dB",
        ),
        failed(
            "a link in a circle as the model",
            link("x", "x"),
            DIRECTORY,
            "x: cannot open: Too many levels of symbolic links (os error 40)",
        ),
        accepted(
            "companions: a name that is not UTF-8",
            all([
                model(),
                Box::new(|folder| {
                    use std::os::unix::ffi::OsStrExt;
                    std::fs::write(folder.join("x").join(std::ffi::OsStr::from_bytes(b"\xff.txt")), "kept")
                        .unwrap();
                }),
            ]),
            DIRECTORY,
            "layer.weight: int8 symmetric, channel, minmax, 50 dB",
        ),
    ]
}
