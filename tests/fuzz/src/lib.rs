//! What the targets share: a file in memory, what must hold of one that was opened, and a bound on memory.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

mod plans;

pub use plans::{consistent, planned, request};

use monoquant::{coded, error::Error, quantize::Settings, reader::Checkpoint, tiles::Piece};

/// Bytes of a tensor that are read.
const MOST: u64 = 1 << 16;
/// Memory for one file: the reader's buffers, and this many bytes for each of the file's.
const BUFFERS: usize = 4 << 20;
const A_BYTE: usize = 1 << 10;
/// As if a regular expression, which may take 10 MiB by itself, were so many bytes.
pub const A_REGEX: usize = 64 << 10;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs `test` on a file of this name in memory, and panics if it takes more memory than such a file may.
pub fn with_file(name: &str, bytes: &[u8], test: impl FnOnce(&Path)) {
    let path = put(name, bytes);
    within(bytes.len(), || test(&path));
}

/// Runs `test`, and panics if it takes more memory than so many bytes of input may.
pub fn within(bytes: usize, test: impl FnOnce()) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    test();
    let taken = PEAK.load(Relaxed) - before;
    assert!(taken <= BUFFERS + bytes * A_BYTE, "{taken} bytes of memory for {bytes} of input");
}

/// A path in memory.
pub fn place(name: &str) -> PathBuf {
    static FOLDER: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let folder =
        FOLDER.get_or_init(|| std::env::var_os("MONOQUANT_FUZZ").expect("tests/fuzz/run sets it").into());
    folder.join(name)
}

/// Writes a file in memory.
pub fn put(name: &str, bytes: &[u8]) -> PathBuf {
    let path = place(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// An error that tells of the input, not of us.
pub fn sound(e: Error) {
    assert!(!e.to_string().contains("internal error"), "{e}");
}

/// Opens a file; if that succeeds, all of its tensors lie in it, and can be read.
pub fn open(path: &Path) {
    let checkpoint = match Checkpoint::open(path) {
        Ok(checkpoint) => checkpoint,
        Err(e) => return sound(e),
    };
    let size = std::fs::metadata(path).unwrap().len();
    let source = checkpoint.source().unwrap();
    if let Some(keys) = checkpoint.gguf() {
        // key-values are written again as they were, behind magic, version and counts
        let mut written = Vec::new();
        keys.write(&mut written);
        assert!(std::fs::read(path).unwrap()[24..].starts_with(&written));
        drop(monoquant::inspect::inspect_checkpoint(&checkpoint));
        planned(path, "out.gguf", &["--preset\nq4_k_m", "--preset\nq8_0", "--bits\n16"]);
    }
    for (i, tensor) in checkpoint.tensors().iter().enumerate() {
        let (bytes, elem) = (tensor.info.bytes(), tensor.info.dtype.size() as u64);
        if tensor.strides.is_none() {
            assert!(tensor.start.checked_add(bytes).unwrap() <= size);
        }
        let part = bytes.min(MOST) / elem * elem;
        let mut first = vec![0; part as usize];
        source.read(i, 0, &mut first).unwrap();
        // The same from the middle on, and what comes last.
        let middle = part / elem / 2 * elem;
        let mut second = vec![0; (part - middle) as usize];
        source.read(i, middle, &mut second).unwrap();
        assert_eq!(first[middle as usize..], second);
        source.read(i, bytes - part, &mut first).unwrap();
    }
}

/// Rows of a layer that are decoded.
const ROWS: usize = 16;

/// Looks for quantized layers; what is found can be decoded, and planned into other layouts.
pub fn layers(path: &Path) {
    open(path);
    let Ok(checkpoint) = Checkpoint::open(path) else { return };
    let tensors = monoquant::quantize::infos(&checkpoint);
    let source = checkpoint.source().unwrap();
    match coded::layers(&checkpoint, &source) {
        Err(e) => sound(e),
        Ok(found) => {
            for layer in &found.coded {
                match coded::qparams(&source, &tensors, &layer.coded) {
                    Err(e) => sound(e),
                    Ok(parameters) => {
                        let rows = layer.coded.rows.min(ROWS);
                        let piece = Piece { row: 0, rows, col: 0, cols: layer.coded.cols };
                        let decoded = coded::decode_rows(&source, layer, &parameters, piece).unwrap();
                        assert_eq!(decoded.len(), piece.elements());
                    }
                }
            }
        }
    }
    monoquant::validate::validate(path).map(drop).unwrap_or_else(sound);
    let settings = Settings { output: Some(path.with_file_name("out")), ..Settings::default() };
    for format in monoquant::formats::ALL {
        monoquant::convert::prepare(path, &[format], 1 << 20, &settings).map(drop).unwrap_or_else(sound);
    }
}
