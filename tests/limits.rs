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
