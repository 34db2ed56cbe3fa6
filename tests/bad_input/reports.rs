//! Reports, for `verify` and `reproduce`.

use crate::{Case, common::command, inputs::*, refused};
use serde_json::{Value, json};
use std::fs;

/// `x.safetensors`, what it became, `y.safetensors`, and the report of that, changed.
fn reported(change: impl Fn(&mut Value) + Sync + Send + 'static) -> Make {
    all([
        sound(),
        Box::new(move |folder| {
            let mut command = command(&["quantize", "-m", "x.safetensors", "-o", "y.safetensors", "--device", "cpu"]);
            let output = command.args(["--quiet", "--report", "r.json"]).current_dir(folder).output().unwrap();
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
        refused("reproduce: no report", nothing(), "reproduce", "?"),
        refused("reproduce: no file", nothing(), REPRODUCE, "?"),
        refused("reproduce: empty", report(""), REPRODUCE, "?"),
        refused("reproduce: garbage", report("a report"), REPRODUCE, "?"),
        refused("reproduce: deep JSON", report(deep("files")), REPRODUCE, "?"),
        refused("reproduce: a list", report("[]"), REPRODUCE, "?"),
        refused("reproduce: another file", report(r#"{"files": 7}"#), REPRODUCE, "?"),
        refused("reproduce: 100 MB", all([reported(|_| {}), sparse("r.json", 100_000_001, b"")]), REPRODUCE, "?").addresses(512 << 10),
        refused("reproduce: no command", reported(|r| r["command"] = json!([])), REPRODUCE, "?"),
        refused("reproduce: a command that makes nothing", reported(|r| r["command"] = json!(["inspect"])), REPRODUCE, "?"),
        refused("reproduce: an option that is not there", reported(|r| r["command"] = json!(["quantize", "--colour=red"])), REPRODUCE, "?"),
        refused("reproduce: an option that replaces", reported(|r| r["command"] = json!(["quantize", "--force"])), REPRODUCE, "?"),
        refused("reproduce: an option that writes", reported(|r| r["command"] = json!(["quantize", "--report=x.safetensors"])), REPRODUCE, "?"),
        refused("reproduce: a word that is no option", reported(|r| r["command"] = json!(["quantize", "x"])), REPRODUCE, "?"),
        refused("reproduce: files of other types", reported(|r| r["files"] = json!([1, 2])), REPRODUCE, "?"),
        refused("reproduce: the input is missing", all([reported(|_| {}), without("x.safetensors")]), REPRODUCE, "?"),
        refused("reproduce: an output with another ending", reported(|_| {}), "reproduce r.json -o new.pt", "?"),
        refused("reproduce: an output that is there", reported(|_| {}), "reproduce r.json -o out.safetensors", "?"),
        refused("reproduce: another SHA-256", reported(|r| r["files"][0]["sha256"] = json!("0")), REPRODUCE, "?"),
        refused("verify: no report", reported(|_| {}), "verify y.safetensors --against x.safetensors --report no.json", "?"),
        refused("verify: garbage", report("a report"), VERIFY, "?"),
        refused("verify: a report without files", reported(|r| r["files"] = json!([])), VERIFY, "?"),
        refused("verify: another SHA-256", reported(|r| r["files"][0]["sha256"] = json!("0")), VERIFY, "?"),
        refused("verify: another size", reported(|r| r["files"][0]["bytes"] = json!(7)), VERIFY, "?"),
        refused("verify: nothing to compare with", nothing(), "verify y.safetensors", "?"),
        refused("verify: against itself", reported(|_| {}), "verify x.safetensors --against x.safetensors", "?"),
        refused("verify: against another model", all([reported(|_| {}), weight(monoquant::tensor::Float::F32, &[4, 64], wave)]), "verify y.safetensors --against x.safetensors", "?"),
        refused("verify: a cut output", all([reported(|_| {}), file("y.safetensors", [9, 0, 0])]), "verify y.safetensors --against x.safetensors", "?"),
        refused("verify: too little memory", reported(|_| {}), "verify y.safetensors --against x.safetensors --max-memory 1MiB", "?"),
    ]
}
