//! What a machine can do at all, measured in the same run: memory, files, and the same arithmetic in plain torch.

use crate::{
    files::Files,
    table::{Row, Sample, timed},
};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    rc::Rc,
};

pub const MEMCPY: &str = "memcpy, one core";
pub const MEMCPY_ALL: &str = "memcpy, all cores";
pub const COPY: &str = "cp of the input, then fsync";
pub const TORCH_INT8: &str = "plain torch, int8 a channel";
pub const TORCH_INT4: &str = "plain torch, int4 groups of 128";

/// Bytes that are copied in memory: far more than a cache holds.
const BLOCK: usize = 256 << 20;

pub fn rows<'a>(files: &Rc<Files>) -> Vec<Row<'a>> {
    let mut blocks = None;
    let one = move || {
        let (from, to) = blocks.get_or_insert_with(touched);
        timed(BLOCK, || to.copy_from_slice(from))
    };
    let mut blocks = None;
    let all = move || {
        let (from, to) = blocks.get_or_insert_with(touched);
        let part = BLOCK.div_ceil(std::thread::available_parallelism().map_or(1, |n| n.get()));
        timed(BLOCK, || {
            std::thread::scope(|scope| {
                for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
                    scope.spawn(|| to.copy_from_slice(from));
                }
            })
        })
    };
    let shared = files.clone();
    let cached = move || {
        let (input, bytes) = shared.input(shared.bytes);
        timed(bytes, || read(&input))
    };
    let shared = files.clone();
    let copy = move || {
        let (input, bytes) = shared.input(shared.bytes);
        let copied = shared.fresh("copy");
        timed(bytes, || {
            std::fs::copy(&input, &copied).expect("cp");
            File::open(&copied).and_then(|f| f.sync_all()).expect("fsync");
        })
    };
    let mut rows = vec![
        Row::new(MEMCPY, one),
        Row::new(MEMCPY_ALL, all),
        Row::new("read of the input from page cache", cached),
        Row::new(COPY, copy),
    ];
    for name in ["w8a8", "w4a16"] {
        let share = result_bytes(name);
        let shared = files.clone();
        let write = move || {
            let path = shared.fresh("written");
            let block = vec![1u8; 4 << 20];
            timed(shared.bytes, || {
                let mut left = shared.bytes / 1024 * share;
                let mut file = File::create(path).expect("a file");
                while left > 0 {
                    let part = left.min(block.len());
                    file.write_all(&block[..part]).expect("a write");
                    left -= part;
                }
                file.sync_all().expect("fsync");
            })
        };
        rows.push(Row::new(format!("write of {name}'s result, then fsync (GB/s of its input)"), write));
    }
    rows
}

/// Bytes of a preset's result, of 1024 bytes of bf16 weights: codes, and scales where there are many.
pub fn result_bytes(preset: &str) -> usize {
    match preset {
        "w8a8" => 512,
        "w4a16" => 256 + 8,
        other => panic!("no yardstick knows what {other} writes"),
    }
}

/// Two blocks whose pages are there: memory that is touched for the first time costs far more.
fn touched() -> (Vec<u8>, Vec<u8>) {
    (vec![1; BLOCK], vec![2; BLOCK])
}

fn read(path: &Path) {
    let mut file = File::open(path).expect("the input");
    let mut buffer = vec![0; 4 << 20];
    while file.read(&mut buffer).expect("the input") > 0 {}
}

/// Plain torch in a process of its own, which measures when a line asks it to.
struct Torch {
    process: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Torch {
    fn start(python: &Path) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/throughput/plain_torch.py");
        let mut command = Command::new(python);
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().ok()?;
        let (ask, answers) = (process.stdin.take()?, BufReader::new(process.stdout.take()?));
        let mut torch = Torch { process, ask, answers };
        torch.line().filter(|line| line == "ready").map(|_| torch)
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).ok().filter(|&n| n > 0).map(|_| line.trim().to_owned())
    }

    /// The best of three.
    fn measure(&mut self, what: &str) -> Sample {
        writeln!(self.ask, "{what}").expect("torch listens");
        let line = self.line().expect("torch answers");
        let mut numbers = line.split_whitespace().map(|n| n.parse().expect("bytes and seconds"));
        let mut next = || numbers.next().expect("bytes and seconds");
        Sample { bytes: next(), seconds: next() }
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The rows of torch, or a line that says why there are none.
pub fn torch_rows<'a>() -> Vec<Row<'a>> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    let Some(torch) = Torch::start(&python) else {
        println!("no torch in {} (tests/setup makes it): its rows are left out", python.display());
        return Vec::new();
    };
    let torch = Rc::new(std::cell::RefCell::new(torch));
    let row = |(name, what): (&str, &'static str)| {
        let torch = torch.clone();
        Row::new(name, move || torch.borrow_mut().measure(what))
    };
    [(TORCH_INT8, "int8"), (TORCH_INT4, "int4")].map(row).into()
}
