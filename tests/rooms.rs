//! One package, one room: who may name which crate, and where `unsafe` may stand.

use std::{fs, path::Path};

const ROOMS: [(&str, &[&str]); 17] = [
    ("pyo3::", &["src/python.rs", "src/python/"]),
    ("rawzip::", &["src/reader/torch/archive.rs"]),
    (
        "crc32fast::",
        &["src/writer/closing.rs", "src/writer/checksum.rs", "src/writer/torch.rs", "src/gpu/cache.rs"],
    ),
    ("wgpu::", &["src/gpu.rs", "src/gpu/"]),
    ("pollster::", &["src/gpu.rs", "src/gpu/"]),
    ("clap::", &["src/cli.rs", "src/cli/args"]),
    ("ctrlc::", &["src/cli/signals_windows.rs"]),
    ("signal_hook::", &["src/cli/signals.rs"]),
    ("indicatif::", &["src/cli/show.rs"]),
    ("comfy_table::", &["src/cli/show.rs"]),
    ("half::", &["src/tensor.rs"]),
    ("rustix::", &["src/writer/destination.rs"]),
    ("fs4::", &["src/writer/opening.rs", "src/writer/destination.rs"]),
    ("sha2::", &["src/writer/digest.rs"]),
    ("tempfile::", &["src/gpu/cache.rs", "src/cli/aside.rs"]),
    ("multiversion::", &["src/kernels/"]),
    ("tracing_subscriber::", &["src/cli/log.rs"]),
];

/// Where `unsafe` may stand, and who lets it.
const UNSAFE: [(&str, &str); 2] =
    [("src/gpu/trusted.rs", "src/gpu.rs"), ("src/python/tensors.rs", "src/python.rs")];

#[test]
fn every_package_stays_in_its_room() {
    let mut seen = 0;
    for (file, text) in sources(Path::new("src")) {
        // tests may compare with anything
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (package, rooms) in ROOMS {
            let named = code.lines().any(|l| l.contains(package) && !l.trim_start().starts_with("//"));
            assert!(!named || rooms.iter().any(|room| file.starts_with(room)), "{file} names {package}");
            seen += usize::from(named);
        }
    }
    assert!(seen >= ROOMS.len(), "the rooms are not where this test looks");
}

/// The lint `unsafe_code` is denied in Cargo.toml; each exception is one of these two, and every block says why it holds.
#[test]
fn unsafe_stands_in_two_files_with_reasons() {
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    assert!(manifest.contains("\nunsafe_code = \"deny\"\n"));
    let (mut unsafe_files, mut exceptions) = (Vec::new(), Vec::new());
    for (file, text) in sources(Path::new("src")) {
        let lines: Vec<&str> = text.lines().collect();
        let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
        if lines.iter().any(|line| code(line).contains("(unsafe_code)")) {
            exceptions.push(file.clone());
        }
        let words =
            |line: &str| code(line).split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe");
        for (i, _) in lines.iter().enumerate().filter(|(_, line)| words(line)) {
            let above = lines[..i].iter().rev().take_while(|line| line.trim_start().starts_with("//"));
            assert!(above.into_iter().any(|line| line.contains("SAFETY: ")), "{file}:{}: no reason", i + 1);
            unsafe_files.push(file.clone());
        }
    }
    unsafe_files.dedup();
    unsafe_files.sort();
    exceptions.sort();
    assert_eq!(unsafe_files, UNSAFE.map(|(file, _)| file));
    assert_eq!(exceptions, UNSAFE.map(|(_, by)| by));
}

fn sources(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push((path.to_string_lossy().replace('\\', "/"), fs::read_to_string(&path).unwrap()));
        }
    }
    found
}
