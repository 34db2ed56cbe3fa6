//! Files of torch: zip archives, TorchScript, the stream of before torch 1.6.

use crate::{
    Case,
    archive::{around, record, zip},
    inputs::*,
    opcodes::{
        MAGIC, call, dict, global, int, old, pickle, rebuild, sound, storage, stored, tensor, text, tuple,
    },
    refused,
};

const QUANTIZE: &str = "quantize -m x.pt -o out.pt -f";

fn archive(object: &[u8]) -> Make {
    file("x.pt", around(&pickle(object)))
}

/// An archive of these records.
fn records(names: &[(&str, &[u8])]) -> Make {
    file("x.pt", zip(&names.iter().map(|(name, data)| record(name, data)).collect::<Vec<_>>()))
}

/// A file of before torch 1.6 with one weight.
fn stream() -> Vec<u8> {
    let object = dict(&[("layer.weight", sound())]);
    old(MAGIC, int(1001), object, &[text("1")], &stored(16, &[7; 64]))
}

pub fn cases() -> Vec<Case> {
    let weights = pickle(&dict(&[("layer.weight", sound())]));
    let whole = around(&weights);
    let stream = stream();
    let compressed = {
        let mut pickled = record("x/data.pkl", &weights);
        pickled.method = 8;
        zip(&[pickled])
    };
    let encrypted = {
        let mut pickled = record("x/data.pkl", &weights);
        pickled.flags |= 1;
        zip(&[pickled])
    };
    let beyond = {
        let mut pickled = record("x/data.pkl", &weights);
        pickled.offset = Some(1 << 40);
        zip(&[pickled])
    };
    vec![
        refused(
            "torch: empty",
            file("x.pt", b""),
            QUANTIZE,
            "x.pt: is empty; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        refused(
            "torch: text",
            file("x.pt", "these are no weights at all"),
            QUANTIZE,
            "x.pt: begins like no checkpoint that is read; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        refused(
            "torch: zeros",
            file("x.pt", [0; 1000]),
            QUANTIZE,
            "x.pt: begins like no checkpoint that is read; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        refused(
            "torch: cut in the first record",
            file("x.pt", &whole[..40]),
            QUANTIZE,
            "x.pt: is a torch archive (zip) without its directory at the end: cut off",
        ),
        refused(
            "torch: cut before the directory of the archive",
            file("x.pt", &whole[..whole.len() - 400]),
            QUANTIZE,
            "x.pt: is a torch archive (zip) without its directory at the end: cut off",
        ),
        refused(
            "torch: cut in the end of the archive",
            file("x.pt", &whole[..whole.len() - 3]),
            QUANTIZE,
            "x.pt: is a damaged torch archive (zip): Unexpected end of file",
        ),
        refused(
            "torch: an empty archive",
            records(&[]),
            QUANTIZE,
            "x.pt: begins like no checkpoint that is read; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        refused(
            "torch: an archive of something else",
            records(&[("readme.txt", b"hello")]),
            QUANTIZE,
            "x.pt: is a zip archive, but none of torch: it has no data.pkl",
        ),
        refused(
            "torch: two pickles",
            records(&[("a/data.pkl", &weights), ("b/data.pkl", &weights)]),
            QUANTIZE,
            "x.pt: tensor `layer.weight` lies in storage `1`, which the file does not have",
        ),
        refused(
            "torch: a pickle without storages",
            records(&[("x/data.pkl", &weights), ("x/byteorder", b"little")]),
            QUANTIZE,
            "x.pt: tensor `layer.weight` lies in storage `1`, which the file does not have",
        ),
        refused(
            "torch: big-endian",
            records(&[("x/data.pkl", &weights), ("x/byteorder", b"big"), ("x/data/1", &[0; 64])]),
            QUANTIZE,
            "x.pt: was written on a machine of another byte order: big",
        ),
        refused(
            "torch: a storage of another size",
            records(&[("x/data.pkl", &weights), ("x/data/1", &[0; 60])]),
            QUANTIZE,
            "x.pt: tensor `layer.weight` lies in storage `1` of 64 bytes, and the file holds 60 of them: cut off, or damaged",
        ),
        refused(
            "torch: a compressed pickle",
            file("x.pt", compressed),
            QUANTIZE,
            "x.pt: is an archive whose record `data.pkl` is compressed or encrypted; accepted: stored, as torch.save writes",
        ),
        refused(
            "torch: an encrypted pickle",
            file("x.pt", encrypted),
            QUANTIZE,
            "x.pt: is an archive whose record `data.pkl` is compressed or encrypted; accepted: stored, as torch.save writes",
        ),
        refused(
            "torch: a record beyond the file",
            file("x.pt", beyond),
            QUANTIZE,
            "x.pt: is a damaged torch archive (zip): failed to fill whole buffer",
        ),
        refused("torch: an empty pickle", file("x.pt", around(b"")), QUANTIZE, "x.pt: the pickle is cut off"),
        refused(
            "torch: a pickle cut off",
            file("x.pt", around(&weights[..weights.len() / 2])),
            QUANTIZE,
            "x.pt: the pickle is cut off",
        ),
        refused(
            "torch: a pickle that calls something",
            archive(&call("os.system", &[text("echo")])),
            QUANTIZE,
            "x.pt: holds a pickled `os.system`, and loading it would run code of that name; nothing was run. Accepted: tensors and what usually lies beside them. Where the file is trusted, save the weights alone: torch.save(model.state_dict(), \"weights.pt\")",
        ),
        refused(
            "torch: a pickle that names something",
            archive(&global("subprocess.Popen")),
            QUANTIZE,
            "x.pt: holds a pickled `subprocess.Popen`, and loading it would run code of that name; nothing was run. Accepted: tensors and what usually lies beside them. Where the file is trusted, save the weights alone: torch.save(model.state_dict(), \"weights.pt\")",
        ),
        refused(
            "torch: a pickle of a number",
            archive(&int(7)),
            QUANTIZE,
            "x.pt: holds a whole number; accepted: a dict of names and tensors, as torch.save(model.state_dict(), …) writes",
        ),
        refused(
            "torch: a pickle of numbers",
            archive(&tuple(&[int(1), int(2)])),
            QUANTIZE,
            "x.pt: holds a tuple; accepted: a dict of names and tensors, as torch.save(model.state_dict(), …) writes",
        ),
        refused(
            "torch: a dict without tensors",
            archive(&dict(&[("epoch", int(3))])),
            QUANTIZE,
            "x.pt: holds a dict without tensors",
        ),
        refused(
            "torch: a pickle in pickles",
            archive(&[b"]".repeat(100_000), b"a".repeat(99_999)].concat()),
            QUANTIZE,
            "x.pt: holds a list; accepted: a dict of names and tensors, as torch.save(model.state_dict(), …) writes",
        ),
        refused(
            "torch: an unknown opcode",
            archive(b"\xff"),
            QUANTIZE,
            "x.pt: the pickle has the opcode 0xff, which no checkpoint needs",
        ),
        refused(
            "torch: a tensor beyond its storage",
            archive(&dict(&[("layer.weight", tensor(16, 0, &[40, 40], &[40, 1]))])),
            QUANTIZE,
            "x.pt: tensor `layer.weight` reaches past the end of its storage of 64 bytes",
        ),
        refused(
            "torch: a negative offset",
            archive(&dict(&[("layer.weight", tensor(16, -1, &[4, 4], &[4, 1]))])),
            QUANTIZE,
            "x.pt: tensor `layer.weight` has an offset that is no whole number from 0 on",
        ),
        refused(
            "torch: negative sizes",
            archive(&dict(&[("layer.weight", tensor(16, 0, &[-4, 4], &[4, 1]))])),
            QUANTIZE,
            "x.pt: tensor `layer.weight` has sizes that are no whole numbers from 0 on",
        ),
        refused(
            "torch: complex128 into safetensors",
            archive(&dict(&[
                ("layer.weight", sound()),
                (
                    "z",
                    rebuild(
                        storage("ComplexDoubleStorage", "0", int(1)),
                        int(0),
                        tuple(&[int(1)]),
                        tuple(&[int(1)]),
                    ),
                ),
            ])),
            "quantize -m x.pt -o out.safetensors -f --preset bf16",
            "z: safetensors has no complex128; --output NAME.pt can hold it",
        ),
        refused(
            "torch: a stride that is missing",
            archive(&dict(&[("layer.weight", tensor(16, 0, &[4, 4], &[1]))])),
            QUANTIZE,
            "x.pt: tensor `layer.weight` has 2 sizes and 1 strides",
        ),
        refused(
            "torch: TorchScript without data",
            records(&[
                ("x/constants.pkl", &pickle(&tuple(&[]))),
                ("x/code/__torch__.py", b"class Net(Module): pass"),
            ]),
            QUANTIZE,
            "x.pt: is a zip archive, but none of torch: it has no data.pkl",
        ),
        refused(
            "torch: the old stream cut in the magic number",
            file("x.pt", &stream[..8]),
            QUANTIZE,
            "x.pt: the pickle is cut off",
        ),
        refused(
            "torch: the old stream cut after the magic number",
            file("x.pt", &stream[..15]),
            QUANTIZE,
            "x.pt: the pickle is cut off (protocol version)",
        ),
        refused(
            "torch: the old stream cut in the object",
            file("x.pt", &stream[..150]),
            QUANTIZE,
            "x.pt: the pickle is cut off (object)",
        ),
        refused(
            "torch: the old stream cut before the storages",
            file("x.pt", &stream[..stream.len() - 72]),
            QUANTIZE,
            "x.pt: is cut off at storage `1`",
        ),
        refused(
            "torch: the old stream cut in a storage",
            file("x.pt", &stream[..stream.len() - 1]),
            QUANTIZE,
            "x.pt: has storage `1` of 16 elements; at its place 16 are announced, and 63 bytes follow: cut off, or damaged",
        ),
        refused(
            "torch: the old stream in another version",
            file("x.pt", old(MAGIC, int(1002), dict(&[("w", sound())]), &[text("1")], &stored(16, &[7; 64]))),
            QUANTIZE,
            "x.pt: is of another version of torch's old format than 1001",
        ),
        refused(
            "torch: the old stream with another storage",
            file("x.pt", old(MAGIC, int(1001), dict(&[("w", sound())]), &[text("9")], &stored(16, &[7; 64]))),
            QUANTIZE,
            "x.pt: lists the storage `9`, which no tensor is in",
        ),
        refused(
            "torch: safetensors by its name",
            file("x.safetensors", &whole),
            crate::QUANTIZE,
            "x.safetensors: the header claims 576460838270094160 bytes, and only 866 follow: cut off, or not a safetensors file",
        ),
    ]
}
