//! Bad input, as a table: what is there, the command, and all that it says. Each row runs the command itself, in a folder
//! of its own, and holds it to this:
//!
//! - the exit code and the message are those of the row, word for word (usage lines of clap are cut off);
//! - nothing panics, and no more than a quarter of a GiB of addresses is taken, or what the row says;
//! - a refusal leaves the folder as it was: no new file, no file changed, neither the input nor the output's place, where
//!   something stood before; and says nothing on stdout;
//! - a success makes the output, touches nothing else, and its report says what the row says.
#![cfg(unix)] // sparse files, links, names that are not UTF-8, ulimit

mod common;

#[path = "common/archive.rs"]
mod archive;
#[path = "bad_input/arguments.rs"]
mod arguments;
#[path = "bad_input/commands.rs"]
mod commands;
#[path = "bad_input/directories.rs"]
mod directories;
#[path = "bad_input/gguf.rs"]
mod gguf;
#[path = "common/gguf.rs"]
mod gguf_files;
#[path = "bad_input/inputs.rs"]
mod inputs;
#[path = "common/opcodes.rs"]
mod opcodes;
#[path = "bad_input/overrides.rs"]
mod overrides;
#[path = "bad_input/places.rs"]
mod places;
#[path = "bad_input/quantized.rs"]
mod quantized;
#[path = "bad_input/safetensors.rs"]
mod safetensors_files;
#[path = "bad_input/statistics.rs"]
mod statistics;
#[path = "bad_input/torch.rs"]
mod torch;
#[path = "bad_input/weights.rs"]
mod weights;

use common::Folder;
use inputs::Make;
use rayon::prelude::*;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Quantizes `x.safetensors`; what stands in the output's place would be replaced.
const QUANTIZE: &str = "quantize -m x.safetensors -o out.safetensors -f";
/// The same of the directory `x`.
const DIRECTORY: &str = "quantize -m x -o out -f";
/// What stands where outputs go.
const BEFORE: [&str; 4] = ["out/config.json", "out.safetensors", "out.pt", "out.gguf"];
/// KiB of addresses that a command may take: threads, code and buffers take most of it.
const ADDRESSES: u64 = 256 << 10;

/// A row of the table.
pub struct Case {
    /// What is wrong.
    name: &'static str,
    make: Make,
    /// The command, without the program: words, of which `''` is an empty one and `%FF` a byte.
    command: &'static str,
    exit: i32,
    /// What it says on stderr, or what its report says; up to `…`, where the rest depends on the machine.
    says: &'static str,
    addresses: u64,
}

impl Case {
    /// In KiB, where a row needs more than others.
    fn addresses(self, kib: u64) -> Self {
        Case { addresses: kib, ..self }
    }
}

fn row(name: &'static str, make: Make, command: &'static str, exit: i32, says: &'static str) -> Case {
    Case { name, make, command, exit, says, addresses: ADDRESSES }
}

/// Bad input or usage.
pub fn refused(name: &'static str, make: Make, command: &'static str, says: &'static str) -> Case {
    row(name, make, command, 2, says)
}

/// What only the system knows to be wrong.
pub fn failed(name: &'static str, make: Make, command: &'static str, says: &'static str) -> Case {
    row(name, make, command, 1, says)
}

/// What looks bad, and is not.
pub fn accepted(name: &'static str, make: Make, command: &'static str, says: &'static str) -> Case {
    row(name, make, command, 0, says)
}

fn table() -> Vec<Case> {
    [
        safetensors_files::cases(),
        torch::cases(),
        gguf::cases(),
        directories::cases(),
        quantized::cases(),
        statistics::cases(),
        places::cases(),
        arguments::cases(),
        commands::cases(),
        overrides::cases(),
        weights::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn every_bad_input_gets_its_message_and_leaves_no_trace() {
    let table = table();
    let names: std::collections::BTreeSet<_> = table.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), table.len(), "two rows have one name");
    assert!(table.len() >= 150, "{} rows", table.len());
    let wrong: Vec<String> = table.par_iter().filter_map(|case| check(case).err()).collect();
    assert!(wrong.is_empty(), "{} of {} rows:\n\n{}", wrong.len(), table.len(), wrong.join("\n\n"));
}

/// What a folder holds: of small files the bytes, of large ones the length, of links the target.
fn contents(folder: &Path) -> BTreeMap<PathBuf, (u64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap();
            let bytes = match () {
                () if kind.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_vec(),
                () if kind.is_file() && kind.len() < 16 << 20 => fs::read(&path).unwrap(),
                () => Vec::new(),
            };
            if kind.is_dir() {
                pending.push(path.clone());
            }
            found.insert(path, (if kind.is_dir() { 0 } else { kind.len() }, bytes));
        }
    }
    found
}

/// The command's words; writing commands run quietly, on the CPU unless the row says otherwise.
fn words(case: &Case) -> Vec<OsString> {
    let plain = case.command.split(' ').map(|word| match word {
        "''" => OsString::new(),
        word => OsString::from_vec(
            word.replace("%FF", "\u{1}").bytes().map(|b| if b == 1 { 0xff } else { b }).collect(),
        ),
    });
    let mut words: Vec<OsString> =
        plain.filter(|word| !case.command.is_empty() || !word.is_empty()).collect();
    let begins = |names: &[&str]| names.iter().any(|name| case.command.starts_with(&format!("{name} -")));
    let writes = begins(&["quantize", "dequantize", "convert"]);
    if writes && !case.command.contains("--device") {
        words.extend(["--device".into(), "cpu".into()]);
    }
    if writes {
        words.push(if case.exit == 0 { "--json" } else { "--quiet" }.into());
    }
    words
}

fn run(case: &Case, folder: &Path) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v $0 && exec \"$@\"", &case.addresses.to_string()]);
    command.arg(env!("CARGO_BIN_EXE_monoquant")).args(words(case)).current_dir(folder);
    // as many threads, and places of an allocator, as on any machine
    command.env("MONOQUANT_CACHE_DIR", "").env("RAYON_NUM_THREADS", "2").env("MALLOC_ARENA_MAX", "2");
    command.output().unwrap()
}

/// Without clap's lines on usage, and the word "error".
fn message(stderr: &str) -> &str {
    let text = stderr.strip_prefix("error: ").unwrap_or(stderr);
    let end = ["\n\nUsage:", "\n\nFor more information"].iter().filter_map(|part| text.find(part)).min();
    text[..end.unwrap_or(text.len())].trim_end()
}

/// What a report or a plan says: a line a tensor, warnings, notes.
fn told(stdout: &str) -> String {
    let Ok(value) = serde_json::from_str::<Value>(stdout) else { return stdout.trim_end().to_owned() };
    let mut lines = Vec::new();
    for tensor in value.get("tensors").unwrap_or(&value).as_array().into_iter().flatten() {
        let mut line =
            format!("{}: {}", tensor["name"].as_str().unwrap(), tensor["action"].as_str().unwrap());
        line += &tensor["reason"].as_str().map_or(String::new(), |reason| format!(" ({reason})"));
        line += &tensor["sqnr_db"].as_f64().map_or(String::new(), |db| format!(", {db:.0} dB"));
        line += &tensor["saturated"].as_u64().map_or(String::new(), |n| format!(", {n} clamped"));
        lines.push(line);
    }
    for kind in ["warnings", "notes"] {
        let said = value[kind].as_array().into_iter().flatten();
        lines.extend(said.map(|line| format!("{}: {}", &kind[..kind.len() - 1], line.as_str().unwrap())));
    }
    lines.join("\n")
}

fn check(case: &Case) -> Result<(), String> {
    let folder = Folder::new();
    fs::create_dir(folder.path("out")).unwrap();
    for name in BEFORE {
        fs::write(folder.path(name), "before").unwrap();
    }
    (case.make)(folder.root());
    let before = contents(folder.root());
    let output = run(case, folder.root());
    let mut after = contents(folder.root());
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    let said = if case.exit == 0 { told(&stdout) } else { message(&stderr).to_owned() };
    let code = output.status.code();
    let wrong = |what: &str| {
        Err(format!(
            "{} (monoquant {}): {what}\n  exit {code:?}, says {said:?}\n  not {:?}",
            case.name, case.command, case.says
        ))
    };
    if stderr.contains("panicked") || stderr.contains("internal error") {
        return wrong(&format!("panics: {stderr}"));
    }
    if code != Some(case.exit) {
        return wrong(&format!("{} was expected; {stderr}", case.exit));
    }
    let same = match case.says.strip_suffix('…') {
        Some(beginning) => said.starts_with(beginning),
        None => said == case.says,
    };
    if !same {
        return wrong("another message");
    }
    if case.exit != 0 && !stdout.is_empty() && !case.command.starts_with("validate") {
        return wrong("says something on stdout");
    }
    if case.exit == 0 {
        // whatever the output is, it is not what stood there
        let out = |path: &PathBuf| {
            let path = path.strip_prefix(folder.root()).unwrap();
            path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("out"))
        };
        let writes = case.command.contains(" -o ") && !case.command.contains("--dry-run");
        if writes
            && before.iter().filter(|(path, _)| out(path)).eq(after.iter().filter(|(path, _)| out(path)))
        {
            return wrong("the output is not there");
        }
        after.retain(|path, _| !out(path));
        let inputs = before.into_iter().filter(|(path, _)| !out(path));
        return if after.into_iter().eq(inputs) { Ok(()) } else { wrong("the input has changed") };
    }
    match before == after {
        true => Ok(()),
        false => wrong(&format!(
            "left a trace: {:?}",
            after.keys().filter(|k| after.get(*k) != before.get(*k)).collect::<Vec<_>>()
        )),
    }
}
