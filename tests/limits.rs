//! What the system does not give: said in an error, with nothing left behind.

#![cfg(unix)]

mod common;

use common::*;
use monoquant::tensor::Float;
use std::{
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    process::{Command, Output},
};

/// A user that nobody is.
const NOBODY: u32 = 65534;

/// A folder that `NOBODY` may write to, with the command, a model and what was made of it.
fn folder() -> Folder {
    let folder = Folder::new();
    fs::copy(env!("CARGO_BIN_EXE_monoquant"), folder.path("monoquant")).unwrap();
    let model = folder.path("model");
    directory(&model, &llama(Float::BF16), &llama_config());
    let coded = folder.text("coded");
    ok(&["quantize", "-m", model.to_str().unwrap(), "-o", &coded, "-b", "4", "--group-size", "32"]);
    let open = Command::new("chmod").args(["-R", "a+rwX"]).arg(folder.root()).status().unwrap();
    assert!(open.success());
    folder
}

/// Runs the command in the folder with at most so many processes, threads counted. The system does not limit root.
fn limited(folder: &Folder, processes: u32, arguments: &str) -> Output {
    let line = format!("cd \"$0\" && ulimit -u {processes} && exec ./monoquant {arguments}");
    let mut command = Command::new("bash");
    command.args(["-c", &line]).arg(folder.root()).env("MONOQUANT_CACHE_DIR", "");
    if fs::metadata(folder.root()).unwrap().uid() == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.output().unwrap()
}

#[test]
fn a_signal_that_is_ignored_does_not_stop_a_run() {
    let folder = Folder::new();
    let tensors = [("a.weight".to_owned(), weights(&[4096, 4096], Float::BF16, 7))].into();
    save(&folder.path("x.safetensors"), &tensors);
    let line =
        "cd \"$0\"; trap '' HUP; exec \"$1\" quantize -m x.safetensors -o out.safetensors -d cpu --quiet";
    let mut run = Command::new("bash")
        .args(["-c", line])
        .arg(folder.root())
        .arg(env!("CARGO_BIN_EXE_monoquant"))
        .env("MONOQUANT_CACHE_DIR", "")
        .spawn()
        .unwrap();
    let mut signals = 0;
    let status = loop {
        if let Some(status) = run.try_wait().unwrap() {
            break status;
        }
        let _ = Command::new("kill").args(["-HUP", &run.id().to_string()]).output().unwrap();
        signals += 1;
    };
    assert!(status.success() && signals > 0, "{status:?} after {signals} signals");
    assert!(folder.path("out.safetensors").exists());
}

/// A report that has another name on the disk stays what it is there.
#[test]
fn what_is_replaced_keeps_its_other_names() {
    let folder = Folder::new();
    let tensors = [("a.weight".to_owned(), weights(&[64, 64], Float::BF16, 7))].into();
    save(&folder.path("x.safetensors"), &tensors);
    let before = fs::read(folder.path("x.safetensors")).unwrap();
    for aside in ["r.json", "t.json"] {
        fs::hard_link(folder.path("x.safetensors"), folder.path(aside)).unwrap();
    }
    let [input, out, report, trace] =
        ["x.safetensors", "o.safetensors", "r.json", "t.json"].map(|n| folder.text(n));
    ok(&["quantize", "-m", &input, "-o", &out, "-f", "--report", &report, "--profile", &trace]);
    assert_eq!(fs::read(input).unwrap(), before);
    assert!(fs::read(report).unwrap() != before && fs::read(trace).unwrap() != before);
}

/// The disk that takes the standard output is full: Linux has one.
#[cfg(target_os = "linux")]
#[test]
fn a_report_outlives_a_standard_output_that_fails() {
    let folder = Folder::new();
    let tensors = [("a.weight".to_owned(), weights(&[64, 64], Float::BF16, 7))].into();
    save(&folder.path("x.safetensors"), &tensors);
    let [input, out, report] = ["x.safetensors", "o.safetensors", "r.json"].map(|n| folder.text(n));
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut run = command(&["quantize", "-m", &input, "-o", &out, "--report", &report, "--json"]);
    assert_eq!(run.stdout(full).output().unwrap().status.code(), Some(1));
    assert!(fs::read_to_string(report).unwrap().contains("sha256"));
}

#[test]
fn where_no_threads_can_be_started_it_says_so() {
    let folder = folder();
    let before = names(folder.root());
    for processes in 1..12 {
        for arguments in [
            "quantize -m model -o out -d cpu",
            "dequantize -m coded -o out -d cpu",
            "convert -m coded -o out -d cpu --format gptq",
            "verify coded --against model",
            "compare model coded",
        ] {
            let output = limited(&folder, processes, arguments);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() {
                assert!(processes > 1, "{arguments} needs threads");
                let _ = fs::remove_dir_all(folder.path("out"));
            } else {
                let case = format!("{processes} processes, {arguments}: {:?}: {text}", output.status);
                assert_eq!(output.status.code(), Some(1), "{case}");
                assert!(text.contains("threads cannot be started: ") && text.contains("ulimit -u"), "{case}");
            }
            assert_eq!(names(folder.root()), before, "{processes} processes, {arguments}");
        }
    }
}
