//! Reports, for `verify` and `reproduce`.

use crate::{Case, accepted, common::command, failed, inputs::*, refused};
use serde_json::{Value, json};
use std::fs;

/// `x.safetensors`, what it became, `y.safetensors`, and the report of that, changed.
fn reported(change: impl Fn(&mut Value) + Sync + Send + 'static) -> Make {
    all([
        sound(),
        Box::new(move |folder| {
            let mut command =
                command(&["quantize", "-m", "x.safetensors", "-o", "y.safetensors", "--device", "cpu"]);
            let output =
                command.args(["--quiet", "--report", "r.json"]).current_dir(folder).output().unwrap();
            assert!(output.status.success());
            let mut report = serde_json::from_slice(&fs::read(folder.join("r.json")).unwrap()).unwrap();
            change(&mut report);
            fs::write(folder.join("r.json"), report.to_string()).unwrap();
        }),
    ])
}

fn report(text: impl AsRef<[u8]>) -> Make {
    all([reported(|_| {}), file("r.json", text)])
}

const VERIFY: &str = "verify y.safetensors --against x.safetensors --report r.json";
const REPRODUCE: &str = "reproduce r.json --device cpu";

pub fn cases() -> Vec<Case> {
    vec![
        refused(
            "reproduce: no report",
            nothing(),
            "reproduce",
            "the following required arguments were not provided:\n  <REPORT>",
        ),
        failed(
            "reproduce: no file",
            nothing(),
            REPRODUCE,
            "r.json: cannot open: No such file or directory (os error 2)",
        ),
        refused(
            "reproduce: empty",
            report(""),
            REPRODUCE,
            "r.json: is not the JSON expected here: EOF while parsing a value at line 1 column 0",
        ),
        refused(
            "reproduce: garbage",
            report("a report"),
            REPRODUCE,
            "r.json: is not the JSON expected here: expected value at line 1 column 1",
        ),
        refused(
            "reproduce: deep JSON",
            report(deep("files")),
            REPRODUCE,
            "r.json: is not the JSON expected here: recursion limit exceeded at line 1 column 1144",
        ),
        refused(
            "reproduce: a list",
            report("[]"),
            REPRODUCE,
            "r.json: holds no SHA-256 of files; accepted: what --report or --json of quantize, dequantize or convert wrote",
        ),
        refused(
            "reproduce: another file",
            report(r#"{"files": 7}"#),
            REPRODUCE,
            "r.json: holds no SHA-256 of files; accepted: what --report or --json of quantize, dequantize or convert wrote",
        ),
        refused(
            "reproduce: 100 MB",
            all([reported(|_| {}), sparse("r.json", 100_000_001, b"")]),
            REPRODUCE,
            "r.json: is larger than 100000000 bytes",
        )
        .addresses(512 << 10),
        refused(
            "reproduce: no command",
            reported(|r| r["command"] = json!([])),
            REPRODUCE,
            "r.json: does not say which command made the output; accepted: what --report or --json of the command line wrote",
        ),
        refused(
            "reproduce: a command that makes nothing",
            reported(|r| r["command"] = json!(["inspect"])),
            REPRODUCE,
            "r.json: is of `inspect`; accepted: a report of quantize, dequantize or convert",
        ),
        refused(
            "reproduce: an option that is not there",
            reported(|r| r["command"] = json!(["quantize", "--colour=red"])),
            REPRODUCE,
            "r.json: its command is not understood by this version: unexpected argument '--colour' found",
        ),
        refused(
            "reproduce: an option that replaces",
            reported(|r| r["command"] = json!(["quantize", "--force"])),
            REPRODUCE,
            "r.json: its command has `--force`; accepted: options that decide bytes of the output, as --NAME=VALUE",
        ),
        refused(
            "reproduce: an option that writes",
            reported(|r| r["command"] = json!(["quantize", "--report=x.safetensors"])),
            REPRODUCE,
            "r.json: its command has `--report=x.safetensors`; accepted: options that decide bytes of the output, as --NAME=VALUE",
        ),
        refused(
            "reproduce: a word that is no option",
            reported(|r| r["command"] = json!(["quantize", "x"])),
            REPRODUCE,
            "r.json: its command is not understood by this version: unexpected argument 'x' found",
        ),
        refused(
            "reproduce: files of other types",
            reported(|r| r["files"] = json!([1, 2])),
            REPRODUCE,
            "r.json: holds no SHA-256 of files; accepted: what --report or --json of quantize, dequantize or convert wrote",
        ),
        refused(
            "reproduce: an option and its value apart",
            reported(|r| r["command"] = json!(["quantize", "--bits", "8"])),
            REPRODUCE,
            "r.json: its command has `--bits`; accepted: options that decide bytes of the output, as --NAME=VALUE",
        ),
        refused(
            "reproduce: a command of numbers",
            reported(|r| r["command"] = json!([1])),
            REPRODUCE,
            "r.json: is no report of monoquant: invalid type: integer `1`, expected a string",
        ),
        refused(
            "reproduce: no model",
            reported(|r| drop(r.as_object_mut().unwrap().remove("model"))),
            REPRODUCE,
            "r.json: is no report of monoquant: missing field `model`",
        ),
        refused(
            "reproduce: a file outside of the output",
            reported(|r| r["files"][0]["name"] = json!("../x.safetensors")),
            REPRODUCE,
            "r.json: holds the SHA-256 of `../x.safetensors`; accepted: a file in the output",
        ),
        refused(
            "reproduce: a file twice",
            reported(|r| r["files"] = json!([r["files"][0], r["files"][0]])),
            REPRODUCE,
            "r.json: holds the SHA-256 of `y.safetensors` twice",
        ),
        refused(
            "reproduce: what an interrupted run left",
            all([reported(|_| {}), directory(".y.safetensors.monoquant-reproduced")]),
            REPRODUCE,
            "./.y.safetensors.monoquant-reproduced: is there: another `monoquant reproduce` is at work, or was interrupted, and then it can be removed; --output names another place",
        ),
        refused(
            "reproduce: the input is missing",
            all([reported(|_| {}), without("x.safetensors")]),
            REPRODUCE,
            "x.safetensors: no such file or directory; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        refused(
            "reproduce: an output with another ending",
            reported(|_| {}),
            "reproduce r.json -o new.pt",
            "--output new.pt: the recorded output is y.safetensors; accepted is a name with the same ending",
        ),
        refused(
            "reproduce: an output that is there",
            reported(|_| {}),
            "reproduce r.json -o out.safetensors",
            "out.safetensors: exists already; --force replaces it, --output names another place",
        ),
        failed(
            "reproduce: another SHA-256",
            reported(|r| r["files"][0]["sha256"] = json!("0")),
            REPRODUCE,
            "device: CPU, 2 threads (--device cpu)\nerror: 2 problems:\n  - y.safetensors: SHA-256 …",
        ),
        failed(
            "verify: no report",
            reported(|_| {}),
            "verify y.safetensors --against x.safetensors --report no.json",
            "no.json: cannot open: No such file or directory (os error 2)",
        ),
        refused(
            "verify: garbage",
            report("a report"),
            VERIFY,
            "r.json: is not the JSON expected here: expected value at line 1 column 1",
        ),
        refused(
            "verify: a report without files",
            reported(|r| r["files"] = json!([])),
            VERIFY,
            "r.json: holds no SHA-256 of files; accepted: what --report or --json of quantize, dequantize or convert wrote",
        ),
        refused(
            "verify: a file by an absolute path",
            reported(|r| r["files"][0]["name"] = json!("/dev/zero")),
            VERIFY,
            "r.json: holds the SHA-256 of `/dev/zero`; accepted: a file in the output",
        ),
        refused(
            "verify: a file without a name",
            reported(|r| r["files"][0]["name"] = json!("")),
            VERIFY,
            "r.json: holds the SHA-256 of ``; accepted: a file in the output",
        ),
        refused(
            "verify: one file, and a report of two",
            reported(|r| r["files"] = json!([r["files"][0], {"name": "z", "bytes": 1, "sha256": "0"}])),
            VERIFY,
            "y.safetensors: is one file, and the report holds 2 files; accepted: the output that the report is of",
        ),
        refused(
            "verify: no output",
            all([reported(|_| {}), without("y.safetensors")]),
            VERIFY,
            "y.safetensors: no such file or directory; accepted: a .safetensors file, a checkpoint of torch (.pt, .pth, .bin, .ckpt), a .gguf file, or a directory with one, or with the index of several",
        ),
        failed(
            "verify: another SHA-256",
            reported(|r| r["files"][0]["sha256"] = json!("0")),
            VERIFY,
            "y.safetensors: SHA-256 …",
        ),
        failed(
            "verify: another size",
            reported(|r| r["files"][0]["bytes"] = json!(7)),
            VERIFY,
            "y.safetensors: 1120 bytes; expected: 7, as in the report",
        ),
        refused(
            "verify: nothing to compare with",
            nothing(),
            "verify y.safetensors",
            "the following required arguments were not provided:\n  --against <CHECKPOINT>",
        ),
        accepted(
            "verify: against itself",
            reported(|_| {}),
            "verify x.safetensors --against x.safetensors",
            "0 tensors cast to the nearest, 1 tensor kept, byte for byte\nx.safetensors: verified",
        ),
        failed(
            "verify: against another model",
            all([reported(|_| {}), weight(monoquant::tensor::Float::F32, &[4, 64], wave)]),
            "verify y.safetensors --against x.safetensors",
            "y.safetensors: layer.weight: shape [8, 64]; expected: [4, 64], as in the input",
        ),
        refused(
            "verify: a cut output",
            all([reported(|_| {}), file("y.safetensors", [9, 0, 0])]),
            "verify y.safetensors --against x.safetensors",
            "y.safetensors: has 3 bytes; a safetensors file begins with an 8-byte length",
        ),
        refused(
            "verify: too little memory",
            reported(|_| {}),
            "verify y.safetensors --against x.safetensors --max-memory 1MiB",
            "--max-memory 1.0 MiB: at least 32MiB are needed",
        ),
    ]
}
