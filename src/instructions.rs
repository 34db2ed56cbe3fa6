//! Instructions for a weight that the CPU's kernels take, counted by valgrind's callgrind: they repeat where times do
//! not. Fails where a sequence takes more than a tenth above what benches/instructions.json says.
//!
//! tests/instructions builds this without overflow checks, and runs it. It runs itself under valgrind over some tiles,
//! and over twice as many: the difference has nothing of start-up in it. valgrind knows no AVX-512, so that the AVX2
//! form of the kernels is counted wherever there is AVX2; elsewhere nothing is. This is a test of the library's own,
//! as the library that other tests link has one file name in all builds, and this build must not take its place.

#[path = "../benches/throughput/sequences.rs"]
mod sequences;

use crate::{backend::Tile, kernels::TileBuffers};
use serde_json::{Map, Value};
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// Above what was recorded.
const HEADROOM: f64 = 0.1;
/// Weights of a tile: 16 rows.
const WEIGHTS: usize = 16 * sequences::COLS;
/// Tiles of the shorter run.
const TILES: usize = 2;
/// What the run under valgrind is told: a sequence, and a number of tiles.
const SEQUENCE: &str = "MONOQUANT_SEQUENCE";
const COUNT: &str = "MONOQUANT_TILES";
/// Says that counts are to be recorded.
const UPDATE: &str = "MONOQUANT_UPDATE";

/// What is counted: hot sequences by name.
fn tiles() -> Vec<(&'static str, Tile)> {
    let quantize = sequences::QUANTIZE;
    let mut all: Vec<_> = quantize
        .map(|(name, preset, observer)| (name, sequences::quantize(preset, observer, WEIGHTS)))
        .into();
    all.push(("dequantize int4", sequences::dequantize(WEIGHTS)));
    all
}

fn recorded_at() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.json")
}

fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Why nothing can be counted here.
fn missing() -> Option<&'static str> {
    let version = Command::new("valgrind").arg("--version").output();
    if cfg!(debug_assertions) {
        Some("this build has overflow checks; tests/instructions makes one without")
    } else if !version.is_ok_and(|output| output.status.success()) {
        Some("valgrind is not installed (Debian package: valgrind)")
    } else if !has_avx2() {
        Some("there is no AVX2 on this machine, for which the counts are recorded")
    } else {
        None
    }
}

#[test]
#[ignore = "tests/instructions runs it"]
fn no_sequence_takes_more_instructions_than_recorded() {
    let update = env::var_os(UPDATE).is_some();
    if let Some(why) = missing() {
        println!("instructions of kernels were NOT counted: {why}");
        return assert!(!update, "nothing to record");
    }
    let path = recorded_at();
    let recorded: Map<String, Value> = match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
        Err(_) if update => Map::new(),
        Err(e) => panic!("{}: {e}; tests/instructions --update makes it", path.display()),
    };
    let mut found = Map::new();
    let mut bad = Vec::new();
    println!("instructions a weight (recorded):");
    for (name, _) in tiles() {
        let Some((one, two)) = count(name, TILES).zip(count(name, 2 * TILES)) else {
            println!("instructions of kernels were NOT counted: valgrind shows no AVX2 to the program");
            return assert!(!update, "nothing to record");
        };
        let each = (two - one) as f64 / (TILES * WEIGHTS) as f64;
        let before = recorded.get(name).and_then(Value::as_f64);
        let (good, verdict) = match before {
            _ if update => (true, ""),
            None => (false, ": NOT RECORDED; tests/instructions --update does it"),
            Some(before) if each > before * (1.0 + HEADROOM) => (false, ": TOO MANY, by more than a tenth"),
            Some(before) if each < before * (1.0 - HEADROOM) => {
                (true, ": fewer than recorded; tests/instructions --update keeps it so")
            }
            Some(_) => (true, ""),
        };
        let shown = before.map_or(String::new(), |before| format!("({before:.2})"));
        println!("{each:>10.2} {shown:>10}  {name}{verdict}");
        found.insert(name.to_owned(), ((each * 100.0).round() / 100.0).into());
        bad.extend((!good).then_some(name));
    }
    if update {
        let text = serde_json::to_string_pretty(&found).unwrap();
        std::fs::write(&path, text + "\n").unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    assert!(bad.is_empty(), "more instructions than recorded: {}", bad.join(", "));
}

/// Instructions of a whole run over so many tiles; none if it had no AVX2.
fn count(name: &str, tiles: usize) -> Option<u64> {
    let file = env::temp_dir().join(format!("monoquant-callgrind-{}", std::process::id()));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", &format!("--callgrind-out-file={}", file.display())])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "instructions::one_run", "--ignored", "--nocapture", "--test-threads=1"])
        .envs([(SEQUENCE, name), (COUNT, &tiles.to_string())])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = totals.and_then(|n| n.trim().parse().ok()).unwrap_or_else(|| panic!("no totals: {said}"));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("ran with"), "{name}: {printed}");
    printed.contains("ran with AVX2").then_some(total)
}

/// What valgrind sees: a sequence over some tiles.
#[test]
#[ignore = "a part of the test above"]
fn one_run() {
    let (Ok(name), Ok(count)) = (env::var(SEQUENCE), env::var(COUNT)) else { return };
    let (_, tile) = tiles().into_iter().find(|(n, _)| *n == name).unwrap();
    let mut input = sequences::input(&tile, 1);
    let mut buffers = TileBuffers { input: input.clone(), ..Default::default() };
    for _ in 0..count.parse().unwrap() {
        sequences::run(&tile, &mut input, &mut buffers);
    }
    println!("ran with {}", if has_avx2() { "AVX2" } else { "less" });
}
