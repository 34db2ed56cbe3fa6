//! Where input is and output goes.

use crate::{Case, QUANTIZE, accepted, failed, inputs::*, refused};

pub fn cases() -> Vec<Case> {
    vec![
        refused(
            "input: no file",
            nothing(),
            QUANTIZE,
            "x.safetensors: no such file or directory; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        refused(
            "input: the empty path",
            nothing(),
            "quantize -m '' -o out -f",
            "a value is required for '--model <CHECKPOINT>' but none was supplied",
        ),
        failed(
            "input: a path through a file",
            sound(),
            "quantize -m x.safetensors/y.safetensors -o out.safetensors -f",
            "x.safetensors/y.safetensors: cannot open: Not a directory (os error 20)",
        ),
        failed(
            "input: a name of 300 letters",
            nothing(),
            "inspect aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa: cannot open: File name too long (os error 36)",
        ),
        refused(
            "input: a name that is not UTF-8",
            nothing(),
            "inspect %FF.safetensors",
            "�.safetensors: no such file or directory; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        refused(
            "input: a device",
            nothing(),
            "inspect /dev/null",
            "/dev/null: is neither a file nor a directory; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        refused(
            "input: a report",
            file("r.json", r#"{"tensors": []}"#),
            "inspect r.json",
            "r.json: begins like no checkpoint that is read; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        refused(
            "output: exists",
            sound(),
            "quantize -m x.safetensors -o out.safetensors",
            "out.safetensors: exists already; --force replaces it, --output names another place",
        ),
        refused(
            "output: is the input",
            sound(),
            "quantize -m x.safetensors -o x.safetensors -f",
            "x.safetensors: the output would replace the input (x.safetensors), which not even --force does; --output names another place",
        ),
        refused(
            "output: is the input by a link",
            all([sound(), link("y.safetensors", "x.safetensors")]),
            "quantize -m x.safetensors -o y.safetensors -f",
            "y.safetensors: the output would replace the input (x.safetensors), which not even --force does; --output names another place",
        ),
        accepted(
            "output: in the input",
            model(),
            "quantize -m x -o x/out -f",
            "layer.weight: int8 symmetric, channel, minmax, 50 dB",
        ),
        refused(
            "output: above the input",
            all([file("d/keep", ""), Box::new(|folder| model()(&folder.join("d")))]),
            "quantize -m d/x -o d -f",
            "d: the output would replace the input (d/x/model.safetensors), which not even --force does; --output names another place",
        ),
        refused(
            "output: this directory",
            sound(),
            "quantize -m x.safetensors -o . -f",
            "2 problems:\n  - .: the output would replace the input (x.safetensors), which not even --force does; --output names another place\n  - .: the output needs a name of its own",
        ),
        refused(
            "output: the directory above",
            sound(),
            "quantize -m x.safetensors -o .. -f",
            "2 problems:\n  - ..: the output would replace the input (x.safetensors), which not even --force does; --output names another place\n  - ..: the output needs a name of its own",
        ),
        refused(
            "output: the root",
            sound(),
            "quantize -m x.safetensors -o / -f",
            "2 problems:\n  - /: the output would replace the input (x.safetensors), which not even --force does; --output names another place\n  - /: the output needs a name of its own",
        ),
        refused(
            "output: the empty path",
            sound(),
            "quantize -m x.safetensors -o '' -f",
            "a value is required for '--output <PATH>' but none was supplied",
        ),
        refused(
            "output: in no directory",
            sound(),
            "quantize -m x.safetensors -o no/out.safetensors",
            "no/out.safetensors: the directory no does not exist; create it first",
        ),
        refused(
            "output: through a file",
            sound(),
            "quantize -m x.safetensors -o out.pt/y.safetensors -f",
            "out.pt is not a directory",
        ),
        refused(
            "output: a file where a directory is",
            all([sound(), without("out.safetensors"), directory("out.safetensors")]),
            QUANTIZE,
            "out.safetensors: exists and is not a file; --output names another place",
        ),
        refused(
            "output: a directory where a file is",
            all([model(), without("out"), file("out", "before")]),
            crate::DIRECTORY,
            "out: exists and is not a directory; --output names another place",
        ),
        refused(
            "output: a device",
            sound(),
            "quantize -m x.safetensors -o /dev/null -f",
            "/dev/null: exists and is not a directory; --output names another place",
        ),
        refused(
            "output: standard output",
            sound(),
            "quantize -m x.safetensors -o -",
            "-: an output is a file or a directory, not the standard output; ./- is one of that name",
        ),
        refused(
            "output: a link in a circle",
            all([sound(), without("out.safetensors"), link("out.safetensors", "out.safetensors")]),
            QUANTIZE,
            "./out.safetensors: cannot follow the link: Too many levels of symbolic links (os error 40)",
        ),
        refused(
            "output: several layouts in a file",
            sound(),
            "quantize -m x.safetensors -o out.safetensors -f -b 4 --group-size 64 --format gptq,awq",
            "out.safetensors: is one file, by the ending of its name; several formats go to folders of a directory, which --output names",
        ),
        accepted(
            "output: a name that is not UTF-8",
            sound(),
            "quantize -m x.safetensors -o out%FF.safetensors",
            "layer.weight: int8 symmetric, channel, minmax, 50 dB",
        ),
        refused(
            "report: exists",
            all([sound(), file("r.json", "before")]),
            "quantize -m x.safetensors -o new.safetensors --report r.json",
            "--report r.json: exists already; --force replaces it",
        ),
        refused(
            "report: a directory",
            all([sound(), directory("r.json")]),
            "quantize -m x.safetensors -o new.safetensors --report r.json",
            "--report r.json: is a directory; accepted is a file",
        ),
        refused(
            "report: in no directory",
            sound(),
            "quantize -m x.safetensors -o new.safetensors --report no/r.json",
            "--report no/r.json: no is no directory",
        ),
        refused(
            "report: in the output",
            model(),
            "quantize -m x -o new --report new/r.json",
            "--report new/r.json: lies inside the output, which appears in one step; name a place beside it",
        ),
        refused(
            "report: in the input",
            model(),
            "quantize -m x -o new --report x/r.json",
            "--report x/r.json: lies inside the input or the output; name another place",
        ),
        refused(
            "report: is the input",
            sound(),
            "quantize -m x.safetensors -o new.safetensors -f --report x.safetensors",
            "--report x.safetensors: lies inside the input or the output; name another place",
        ),
        refused(
            "report: is the output",
            sound(),
            "quantize -m x.safetensors -o new.safetensors -f --report new.safetensors",
            "--report new.safetensors: lies inside the output, which appears in one step; name a place beside it",
        ),
        refused(
            "report: the empty path",
            sound(),
            "quantize -m x.safetensors -o new.safetensors --report ''",
            "a value is required for '--report <FILE.json>' but none was supplied",
        ),
        refused(
            "report: is the trace",
            sound(),
            "quantize -m x.safetensors -o new.safetensors --report r.json --profile r.json",
            "--report and --profile name the same file; name two",
        ),
        refused(
            "profile: a directory",
            all([sound(), directory("t.json")]),
            "quantize -m x.safetensors -o new.safetensors --profile t.json",
            "--profile t.json: is a directory; accepted is a file",
        ),
        refused(
            "profile: in no directory",
            sound(),
            "quantize -m x.safetensors -o new.safetensors --profile no/t.json",
            "--profile no/t.json: no is no directory",
        ),
    ]
}
