//! Hostile files: refused by a message that names what is wrong, within bounds of memory and of bytes read, or opened
//! without one tensor reaching beyond the file. `tests/fuzz/run` looks for more of them.
#![cfg(unix)] // sparse files
#![allow(missing_docs)]
#![allow(unsafe_code)] // the allocator that counts

#[path = "common/archive.rs"]
mod archive;
#[path = "hostile/archives.rs"]
mod archives;
#[path = "hostile/folders.rs"]
mod folders;
#[path = "hostile/gguf.rs"]
mod gguf;
#[path = "common/gguf.rs"]
mod gguf_files;
#[path = "hostile/old.rs"]
mod old;
#[path = "common/opcodes.rs"]
mod opcodes;
#[path = "hostile/pickles.rs"]
mod pickles;
#[path = "hostile/sizes.rs"]
mod sizes;

use monoquant::reader::Checkpoint;
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
    path::Path,
};

/// Memory that this thread holds, and the most that it held.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static FOLDER: tempfile::TempDir = in_memory();
}

fn count(bytes: isize) {
    let live = LIVE.get() + bytes;
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

// SAFETY: passes every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // as if the old and the new place were there together
        count(size as isize);
        count(-(layout.size() as isize));
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes that this thread read, where the system counts them.
fn read_so_far() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap_or_default();
    io.lines().find_map(|l| l.strip_prefix("rchar: ")?.parse().ok()).unwrap_or(0)
}

/// A folder in memory, where there is one: thousands of small files, and some that no disk could hold.
pub fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// What opening a file took.
pub struct Opened {
    pub result: Result<Checkpoint, String>,
    pub memory: u64,
    pub read: u64,
}

/// Opens a file, and reads from each tensor: what was opened must be there.
pub fn open(path: &Path) -> Opened {
    let (before, live) = (read_so_far(), LIVE.get());
    PEAK.set(live);
    let result = Checkpoint::open(path).map_err(|e| e.to_string());
    let (memory, read) = ((PEAK.get() - live) as u64, read_so_far() - before);
    if let Ok(checkpoint) = &result {
        let source = checkpoint.source().unwrap();
        for (i, t) in checkpoint.tensors().iter().enumerate() {
            let size = fs::metadata(&checkpoint.files()[t.file]).unwrap().len();
            let (bytes, elem) = (t.info.bytes(), t.info.dtype.size() as u64);
            assert!(t.strides.is_some() || t.start.checked_add(bytes).unwrap() <= size, "{t:?}");
            let mut part = vec![0; (bytes.min(4096) / elem * elem) as usize];
            source.read(i, 0, &mut part).unwrap();
            source.read(i, bytes - part.len() as u64, &mut part).unwrap();
        }
    }
    if let Err(text) = &result {
        assert!(!text.contains("internal error") && text.len() < 10_000, "{text:.1000}");
    }
    Opened { result, memory, read }
}

/// Opens these bytes as `x.pt` within the usual bounds: buffers, and a small multiple of the file.
pub fn open_bytes(bytes: &[u8]) -> Result<Checkpoint, String> {
    let path = FOLDER.with(|folder| folder.path().join("x.pt"));
    fs::write(&path, bytes).unwrap();
    let opened = open(&path);
    let size = bytes.len() as u64;
    assert!(opened.memory < (2 << 20) + 16 * size, "{} bytes of memory for {size}", opened.memory);
    assert!(opened.read < (2 << 20) + 4 * size, "{} bytes read of {size}", opened.read);
    opened.result
}

/// Expects a refusal that says all of this.
pub fn refuses(what: &str, bytes: &[u8], parts: &[&str]) {
    let message = open_bytes(bytes).err().unwrap_or_else(|| panic!("{what}: should be refused"));
    says(what, &message, parts);
}

pub fn says(what: &str, message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{what}: `{part}` is not in: {message:.1000}");
    }
}

/// Files that once went wrong, and the seeds of the fuzzers: opened, or refused.
#[test]
fn files_that_fuzzers_found() {
    let mut seen = 0;
    for folder in ["regressions", "corpus"] {
        for kind in ["checkpoint", "pickle", "safetensors"] {
            let folder = Path::new("tests/fuzz").join(folder).join(kind);
            for entry in fs::read_dir(&folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                let bytes = fs::read(&path).unwrap();
                seen += 1;
                match kind {
                    "checkpoint" => drop(open_bytes(&bytes)),
                    "pickle" => drop(open_bytes(&archive::around(&bytes))),
                    _ => {
                        let folder = tempfile::tempdir().unwrap();
                        let path = folder.path().join("x.safetensors");
                        fs::write(&path, bytes).unwrap();
                        drop(open(&path));
                        drop(monoquant::inspect::inspect(&path));
                    }
                }
            }
        }
    }
    assert!(seen >= 50, "the seeds are not where this test looks");
}

/// Sound files, cut off at every byte, and with every byte changed.
#[test]
fn damaged_anywhere() {
    let object = opcodes::dict(&[("w", opcodes::sound()), ("v", opcodes::tensor(16, 1, &[3], &[5]))]);
    let archive = archive::around(&opcodes::pickle(&object));
    let stored = opcodes::stored(16, &[7; 64]);
    let old = opcodes::old(opcodes::MAGIC, opcodes::int(1001), object, &[opcodes::text("1")], &stored);
    for bytes in [archive, old] {
        assert_eq!(open_bytes(&bytes).unwrap().tensors().len(), 2);
        let words = ["cut off", "damaged", "begins like no checkpoint", "is empty"];
        for end in 0..bytes.len() {
            let message = open_bytes(&bytes[..end]).expect_err("cut off");
            assert!(words.iter().any(|word| message.contains(word)), "{end}: {message}");
        }
        for at in 0..bytes.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] ^= change;
                drop(open_bytes(&bytes));
            }
        }
    }
}
