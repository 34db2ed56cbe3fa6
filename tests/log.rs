//! The log: what was decided for each tensor and how long each stage took, on stderr, where it is asked for.

mod common;

use common::*;
use monoquant::{profile::Stage, tensor::Float};
use serde_json::Value;
use std::collections::BTreeSet;

/// stdout and stderr of a quantization to four bits, with more arguments and RUST_LOG.
fn quantized(more: &[&str], rust_log: Option<&str>) -> (String, String) {
    let folder = Folder::new();
    let model = folder.path("model");
    let mut tensors = llama(Float::BF16);
    tensors.insert("odd\n\u{1b}[31mname.weight".into(), weights(&[8, 64], Float::BF16, 7));
    directory(&model, &tensors, &llama_config());
    let out = folder.text("out");
    let arguments = ["quantize", "-m", model.to_str().unwrap(), "-o", &out, "-b", "4", "--group-size", "32"];
    let mut command = command(&[&arguments[..], more].concat());
    rust_log.map(|filter| command.env("RUST_LOG", filter));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // temporary folders and times differ from run to run
    let text = |bytes| String::from_utf8(bytes).unwrap().replace(folder.root().to_str().unwrap(), "FOLDER");
    (text(output.stdout), text(output.stderr))
}

/// Lines with all of these.
fn lines<'a>(log: &'a str, with: &[&str]) -> Vec<&'a str> {
    log.lines().filter(|line| with.iter().all(|part| line.contains(part))).collect()
}

fn stages(log: &str, line: &str) -> BTreeSet<&'static str> {
    let named = |stage: &Stage| !lines(log, &[line, &format!("stage=\"{}\" ", stage.name())]).is_empty();
    Stage::ALL.iter().filter(|stage| named(stage)).map(|stage| stage.name()).collect()
}

#[test]
fn v_names_every_decision_and_every_stage() {
    let (stdout, log) = quantized(&["-v", "-d", "gpu", "--json"], None);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let rows = report["tensors"].as_array().unwrap();
    for row in rows {
        let text = |field: &str| row[field].as_str().map(str::to_owned);
        let mut parts = vec![
            format!("tensor={:?}", text("name").unwrap()),
            format!("dtype={:?}", text("dtype").unwrap()),
        ];
        parts.push(format!("action={:?}", text("action").unwrap()));
        parts.extend(text("reason").map(|reason| format!("reason={reason:?}")));
        parts.extend(["shape", "before", "after"].map(|field| {
            let value = row[field].to_string().replace(',', ", ");
            format!("{field}={value}")
        }));
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        assert_eq!(lines(&log, &[&["decided"], &parts[..]].concat()).len(), 1, "{parts:?}: {log}");
    }
    assert_eq!(lines(&log, &["decided"]).len(), rows.len());
    assert_eq!(lines(&log, &["weight_packed", "int4 symmetric, group 32, mse"]).len(), 15, "{log}");
    assert_eq!(lines(&log, &["opened", "device="]).len(), 1);
    assert_eq!(stages(&log, "took"), Stage::ALL.map(Stage::name).into(), "{log}");
    // all that was read, and how fast
    let read = lines(&log, &["took", "stage=\"read\"", "seconds=", "gb_per_second="]);
    let before: u64 = rows.iter().map(|row| row["before"].as_u64().unwrap()).sum();
    assert!(read.len() == 1 && read[0].contains(&format!("bytes={before} ")), "{read:?}");
    assert!(lines(&log, &["DEBUG"]).is_empty() && !log.contains('\u{1b}'), "{log}");
}

#[test]
fn vv_names_every_tile() {
    let tiles = ["-d", "cpu", "--tile-bytes", "2KiB"];
    let (_, log) = quantized(&[&["-vv"], &tiles[..]].concat(), None);
    let of_one = lines(&log, &["span", "stage=\"kernel\"", "quantize", "layers.1.mlp.down_proj.weight"]);
    assert!(of_one.len() > 1, "{log}");
    assert!(stages(&log, "span").is_superset(&["read", "kernel", "store", "write"].into()), "{log}");
}

#[test]
fn nothing_is_logged_unless_asked_for() {
    let (stdout, stderr) = quantized(&["-d", "cpu"], None);
    for empty in ["", "off"] {
        let (out, err) = quantized(&["-d", "cpu"], Some(empty));
        let until_time = |text: &str| text.rsplit_once(", ").unwrap().0.to_owned();
        assert_eq!((out, until_time(&err)), (stdout.clone(), until_time(&stderr)));
    }
    assert!(lines(&stderr, &["INFO"]).is_empty(), "{stderr}");
}

#[test]
fn rust_log_says_what_and_counts_more_than_v() {
    let (stdout, log) = quantized(&["-d", "cpu", "--json", "-vv"], Some("monoquant::plan=info"));
    serde_json::from_str::<Value>(&stdout).unwrap();
    assert!(!lines(&log, &["decided"]).is_empty() && lines(&log, &["took"]).is_empty(), "{log}");
    assert!(log.lines().all(|line| line.contains("decided")), "{log}");
    // what wgpu and its drivers say, in the same log
    let (_, log) = quantized(&["-d", "gpu"], Some("wgpu_core=info,wgpu_hal=debug"));
    assert!(!lines(&log, &["wgpu"]).is_empty() && lines(&log, &["decided"]).is_empty(), "{log}");
    let (_, log) = quantized(&["-d", "cpu", "-v"], Some("monoquant=loud"));
    assert_eq!(lines(&log, &["warning: RUST_LOG=monoquant=loud is ignored", "accepted"]).len(), 1, "{log}");
    assert!(!lines(&log, &["took"]).is_empty(), "{log}");
}
