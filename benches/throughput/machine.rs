//! Where and when a table was made, and the line that keeps it.

use serde_json::{Value, json};
use std::{
    fs::OpenOptions,
    io::Write,
    path::Path,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or(std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// The commit, with a mark if files were changed since; none outside of a clone.
fn commit() -> Option<String> {
    let git = Command::new("git").args(["describe", "--always", "--dirty"]).output().ok()?;
    let text = String::from_utf8(git.stdout).ok()?;
    (git.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// Today in UTC, as 2026-11-22.
fn date() -> String {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs() / 86400);
    // of the calendar that starts with March, so that leap days come last
    let z = days + 719_468;
    let (era, day) = (z / 146_097, z % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    format!("{}-{month:02}-{day:02}", era * 400 + year + u64::from(month <= 2))
}

/// What was run.
pub struct Run {
    /// The GPU, in words.
    pub gpu: Option<String>,
    /// Bytes of the usual input.
    pub bytes: usize,
    /// Measurements of each row.
    pub runs: usize,
}

impl Run {
    /// A heading for the table.
    pub fn title(&self) -> String {
        let commit = commit().map(|commit| format!(" ({commit})")).unwrap_or_default();
        format!(
            "monoquant {}{commit}, {}, {} cores of {}, GPU: {}; {:.2} GB of bf16, {} runs",
            env!("CARGO_PKG_VERSION"),
            date(),
            cores(),
            cpu(),
            self.gpu.as_deref().unwrap_or("none"),
            self.bytes as f64 / 1e9,
            self.runs
        )
    }

    /// Prints a line of JSON, and keeps it in target/bench.jsonl.
    pub fn record(&self, rows: Value) {
        let line = json!({"version": env!("CARGO_PKG_VERSION"), "commit": commit(), "date": date(), "cpu": cpu(),
            "cores": cores(), "gpu": self.gpu, "bytes": self.bytes, "runs": self.runs, "rows": rows});
        println!("\n{line}");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench.jsonl");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        if let Err(e) = file.and_then(|mut file| writeln!(file, "{line}")) {
            eprintln!("{}: {e}", path.display());
        }
    }
}
