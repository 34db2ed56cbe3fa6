//! One program, one table: what monoquant does in GB/s of bf16 weights, beside yardsticks taken in the same run.
//!
//!     cargo bench --bench throughput [-- --gib 1 --runs 5 --only w4a16 --device gpu --large]
//!
//! Rows run in turn, as often as `--runs` says, each just after the row that it is held against; the table has medians,
//! extremes, and the median of the ratios. A line of JSON with everything is printed, and appended to
//! target/bench.jsonl.

mod cpu;
mod files;
mod gpu;
mod machine;
mod resident;
mod sequences;
mod table;
mod yardsticks;

use files::Files;
use monoquant::device::Choice;
use table::Row;

/// As the command has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "options of this benchmark:
  --gib N          size of the usual input [1]
  --runs N         runs over all rows; what takes a moment is measured several times in each [5]
  --only TEXT      rows with this in their names, and the yardsticks that they are held against
  --device NAME    the GPU that is measured: gpu (any), or a part of an adapter's name [gpu]
  --large          16 GB and 100,000 tensors, too (needs 40 GB of disk)";

struct Options {
    gib: f64,
    runs: usize,
    only: Option<String>,
    device: String,
    large: bool,
}

fn options(mut arguments: impl Iterator<Item = String>) -> Option<Options> {
    let mut options = Options { gib: 1.0, runs: 5, only: None, device: "gpu".into(), large: false };
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "--bench" => {} // of cargo
            "--large" => options.large = true,
            "--gib" => options.gib = arguments.next()?.parse().ok().filter(|gib| *gib > 0.0)?,
            "--runs" => options.runs = arguments.next()?.parse().ok().filter(|runs| *runs > 0)?,
            "--only" => options.only = Some(arguments.next()?),
            "--device" => options.device = arguments.next()?,
            _ => return None,
        }
    }
    Some(options)
}

fn main() {
    monoquant::gpu::quiet_driver();
    let Some(options) = options(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    let Ok(choice) = options.device.parse::<Choice>();
    let files = Files::new((options.gib * f64::from(1 << 30)) as usize);
    let mut rows = yardsticks::rows(&files);
    rows.extend(yardsticks::torch_rows());
    rows.extend(cpu::rows());
    rows.extend(files::rows(&files, options.large));
    let of_gpu = gpu::rows(&choice, &files);
    let gpu = of_gpu.as_ref().map(|(name, _)| name.clone());
    if let Some((_, of_gpu)) = of_gpu {
        rows.extend(of_gpu);
        rows.extend(files::gpu_rows(&files, &choice, gpu::RINGS));
    }
    rows.extend(files::start_up_rows(&files, gpu.as_ref().map(|_| options.device.as_str())));
    if let Some(only) = &options.only {
        select(&mut rows, only);
    }
    if rows.is_empty() {
        eprintln!("no row has that in its name\n{USAGE}");
        std::process::exit(2);
    }
    let measured = table::measure(&mut rows, options.runs);
    let run = machine::Run { gpu, bytes: files.bytes, runs: options.runs };
    println!("{}\n", run.title());
    run.record(table::show(&rows, &measured));
}

/// Keeps rows with this in their names, and what they are held against.
fn select(rows: &mut Vec<Row>, only: &str) {
    let mut wanted: Vec<String> = Vec::new();
    for row in rows.iter().filter(|row| row.name.contains(only)) {
        wanted.push(row.name.clone());
        wanted.extend(row.against.as_ref().map(|against| against.row.to_owned()));
    }
    rows.retain(|row| wanted.contains(&row.name));
}
