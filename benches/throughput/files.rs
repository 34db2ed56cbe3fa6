//! Files to files: whole runs as the command makes them, growth with size and number of tensors, start-up.

use crate::{
    sequences::{COLS, scheme},
    table::{Row, Sample, timed},
    yardsticks::{COPY, result_bytes},
};
use monoquant::{
    device::{self, Device},
    kernels::cases::data,
    observer::Observer,
    plan::{OnMismatch, Request},
    quantize::{OnNonFinite, Settings, execute, prepare},
    recipe::Recipe,
    scheme::{Method, preset},
    tensor::Float,
};
use std::{
    cell::{LazyCell, RefCell},
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    rc::Rc,
};

const W4A16: &str = "w4a16 file to file, CPU";
const W4A16_GPU: &str = "w4a16 file to file, GPU";
const ONE_GB: &str = "1 GB in tensors of 64 MiB";
/// What a copying program would need for the same bytes: where it grows as well, it is the machine's.
const ONE_GB_COPY: &str = "cp of 1 GB in tensors of 64 MiB, cut to w4a16's size, then fsync";
const ONE_TENSOR: &str = "0.66 GB in one tensor";
const TEN_TENSORS: &str = "6.6 GB in ten tensors";

/// Made inputs, in a folder that goes when the program ends.
pub struct Files {
    folder: tempfile::TempDir,
    /// Bytes of the usual input.
    pub bytes: usize,
}

impl Files {
    /// The folder is under target/, as a system's temporary folder may be memory.
    pub fn new(bytes: usize) -> Rc<Self> {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder under target");
        Rc::new(Files { folder, bytes: bytes.next_multiple_of(1 << 20) })
    }

    /// A checkpoint of matrices of 64 MiB.
    pub fn input(&self, bytes: usize) -> (PathBuf, usize) {
        self.tensors(bytes, (64 << 20).min(bytes))
    }

    /// The input of a GPU, which may be a slow one.
    pub fn gpu_input(&self) -> (PathBuf, usize) {
        self.input(self.bytes / 4)
    }

    /// A checkpoint of bf16 matrices of `each` bytes; its bytes of weights.
    fn tensors(&self, bytes: usize, each: usize) -> (PathBuf, usize) {
        let (rows, count) = (each / COLS / 2, bytes.div_ceil(each));
        let each = rows * COLS * 2;
        let path = self.folder.path().join(format!("{count}-of-{each}.safetensors"));
        if !path.exists() {
            make(&path, rows, count, each);
        }
        (path, count * each)
    }

    /// A name that nothing has.
    pub fn fresh(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        if path.exists() {
            std::fs::remove_file(&path).expect("an old result");
        }
        path
    }
}

fn make(path: &Path, rows: usize, count: usize, each: usize) {
    let mut header = serde_json::Map::new();
    for i in 0..count {
        let entry = serde_json::json!({"dtype": "BF16", "shape": [rows, COLS], "data_offsets": [i * each, (i + 1) * each]});
        header.insert(format!("model.layers.{i:06}.mlp.up_proj.weight"), entry);
    }
    let header = serde_json::to_vec(&header).expect("a header");
    let block = data("gaussian", (8 << 20).min(each) / 2, Float::BF16, 1);
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let mut left = count * each;
        while left > 0 {
            file.write_all(&block[..left.min(block.len())])?;
            left -= left.min(block.len());
        }
        // or its pages are written back while others are measured
        file.sync_all()
    };
    write().expect("the input");
}

fn quantize(files: &Files, (input, bytes): (PathBuf, usize), run: &Run, device: &mut Device) -> Sample {
    let settings = Settings {
        output: Some(files.fresh("out.safetensors")),
        max_memory: run.max_memory,
        ..Settings::default()
    };
    let preset = preset(run.preset).expect("a preset");
    let mut recipe = Recipe::new(preset);
    recipe.method = Method::Quantize(scheme(run.preset, run.observer));
    let request = Request {
        recipe,
        formats: vec![monoquant::formats::ALL[0]],
        symmetry_stated: false,
        on_mismatch: OnMismatch::Refuse,
        saturate: false,
        max_shard_size: None,
    };
    timed(bytes, || {
        let prepared = prepare(&input, &request, OnNonFinite::Refuse, &settings).expect("a plan");
        let report = execute(&prepared, device, &settings, &false.into(), &|_| {}).expect("a run");
        assert!(report.bytes_after < report.bytes_before * 6 / 10, "not everything was quantized");
    })
}

struct Run {
    preset: &'static str,
    observer: Observer,
    max_memory: u64,
}

/// A device that is opened when the first row needs it.
type Shared = Rc<LazyCell<RefCell<Device>, Box<dyn FnOnce() -> RefCell<Device>>>>;

fn shared(choice: device::Choice) -> Shared {
    let open = move || {
        let device = device::open(&choice, &Default::default());
        RefCell::new(device.unwrap_or_else(|e| panic!("{e}")))
    };
    Rc::new(LazyCell::new(Box::new(open)))
}

/// A row of one run on files.
fn row<'a>(
    name: impl Into<String>,
    files: &Rc<Files>,
    device: &Shared,
    run: Run,
    input: impl Fn(&Files) -> (PathBuf, usize) + 'a,
) -> Row<'a> {
    let (files, device) = (files.clone(), device.clone());
    Row::new(name, move || quantize(&files, input(&files), &run, &mut device.borrow_mut()))
}

fn usual(preset: &'static str) -> Run {
    Run { preset, observer: Observer::MinMax, max_memory: Settings::default().max_memory }
}

/// Reads an input and writes as many bytes as w4a16 makes of it.
fn copying<'a>(files: &Rc<Files>, bytes: usize) -> impl FnMut() -> Sample + 'a {
    let files = files.clone();
    move || {
        let ((input, bytes), copied) = (files.input(bytes), files.fresh("copy"));
        let mut block = vec![0; 4 << 20];
        let mut copy = || {
            let (mut from, mut to) = (File::open(&input)?, File::create(&copied)?);
            loop {
                match from.read(&mut block)? {
                    0 => return to.sync_all(),
                    // codes and scales of 1024 bytes of bf16 weights
                    n => to.write_all(&block[..n / 1024 * result_bytes("w4a16")])?,
                }
            }
        };
        timed(bytes, || copy().expect("cp"))
    }
}

/// Whole runs on the CPU, and how they grow.
pub fn rows<'a>(files: &Rc<Files>, large: bool) -> Vec<Row<'a>> {
    const GB: usize = 1_000_000_000;
    let cpu = shared(device::Choice::Cpu);
    let all = |files: &Files| files.input(files.bytes);
    let mse = Run { observer: Observer::Mse { both_signs: true }, ..usual("w4a16") };
    let small = Run { max_memory: 128 << 20, ..usual("w4a16") };
    let mut rows = vec![
        row("w8a8 file to file, CPU", files, &cpu, usual("w8a8"), all).time_of(COPY, 1.25),
        row(W4A16, files, &cpu, usual("w4a16"), all).time_of(COPY, 1.25),
        row("w4a16 mse file to file, CPU", files, &cpu, mse, all).time_of(W4A16, 3.0),
        row("w4a16 file to file, CPU, --max-memory 128MiB", files, &cpu, small, all).time_of(W4A16, 1.1),
        row(ONE_GB, files, &cpu, usual("w4a16"), |files| files.input(GB)),
        Row::new(ONE_GB_COPY, copying(files, GB)),
    ];
    for &tenths in if large { &[1, 40, 160][..] } else { &[1, 40] } {
        let name = format!("{} GB in tensors of 64 MiB", tenths as f64 / 10.0);
        let input = move |files: &Files| files.input(tenths * GB / 10);
        let copy = ONE_GB_COPY.replacen("1 GB in tensors of 64 MiB", &name, 1);
        rows.push(row(name, files, &cpu, usual("w4a16"), input).time_of(ONE_GB, None));
        rows.push(Row::new(copy, copying(files, tenths * GB / 10)).time_of(ONE_GB_COPY, None));
    }
    // the same weights in few tensors and in many
    let numbers = [(10_000, ONE_TENSOR), (100_000, TEN_TENSORS)];
    for (count, few) in numbers.into_iter().take(1 + usize::from(large)) {
        let large = move |files: &Files| files.tensors(count << 16, 10_000 << 16);
        rows.push(row(few, files, &cpu, usual("w4a16"), large));
        let name = format!("{count} tensors of 64 KiB");
        let input = move |files: &Files| files.tensors(count << 16, 1 << 16);
        rows.push(row(name, files, &cpu, usual("w4a16"), input).time_of(few, 2.0));
    }
    rows
}

/// Whole runs on a GPU, against rows by preset.
pub fn gpu_rows<'a>(
    files: &Rc<Files>,
    choice: &device::Choice,
    rings: [(&'static str, &'static str); 2],
) -> Vec<Row<'a>> {
    let device = shared(choice.clone());
    let whole = |preset| format!("{preset} file to file, GPU");
    let mut rows: Vec<Row> = rings
        .map(|(preset, ring)| {
            row(whole(preset), files, &device, usual(preset), Files::gpu_input).rate_of(ring, 0.8)
        })
        .into();
    let small = Run { max_memory: 128 << 20, ..usual("w4a16") };
    let row = row(format!("{W4A16_GPU}, --max-memory 128MiB"), files, &device, small, Files::gpu_input);
    rows.push(row.time_of(W4A16_GPU, 1.1));
    rows
}

/// The command from its start to its end; `gpu` is a value of `--device`, if there is one.
pub fn start_up_rows<'a>(files: &Rc<Files>, gpu: Option<&str>) -> Vec<Row<'a>> {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_monoquant"));
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        timed(0, || assert!(command.status().is_ok_and(|status| status.success()), "{arguments:?} failed"))
    };
    let whole = |device: &str| {
        let (files, device) = (files.clone(), device.to_owned());
        move || {
            let (input, _) = files.input(1 << 20);
            let out = files.fresh("out.safetensors");
            let [input, out] = [&input, &out].map(|path| path.to_str().expect("a name"));
            run(&["quantize", "-m", input, "-o", out, "-b", "4", "-d", &device])
        }
    };
    let mut rows = vec![
        Row::new("monoquant --help", move || run(&["--help"])),
        Row::new("1 MB from start to end, CPU", whole("cpu")),
    ];
    rows.extend(gpu.map(|gpu| Row::new("1 MB from start to end, GPU", whole(gpu))));
    rows
}
