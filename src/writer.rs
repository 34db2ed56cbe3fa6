//! Checkpoints out: streamed to any place of any file from any thread, and there at once or not at all.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::reader::Stamps;
use crate::reader::handles::{Handles, read_at, write_at};
use crate::reader::strided::Lattice;
use crate::tensor::View;

mod checksum;
mod closing;
mod destination;
mod digest;
mod finisher;
mod gathered;
mod gguf;
mod layout;
mod manifest;
mod memory;
mod opening;
mod profiled;
mod safetensors;
#[cfg(test)]
mod tests;
mod torch;
mod workplace;

pub(crate) use destination::left_bytes;
pub use destination::{Destination, free_bytes};
pub use digest::WrittenFile;
pub(crate) use digest::{Formatted, of_file as sha256_of_file};
pub use layout::{Container, FileLayout};
pub use manifest::Identity;
pub(crate) use manifest::files_in as list_files;
pub use memory::MemoryOutput;
pub use opening::Start;
pub use profiled::ProfiledOutput;

use checksum::Checksum;
use destination::Staging;
use finisher::Finisher;
use gathered::Gathered;

/// Takes the bytes of output tensors, numbered by file and tensor.
pub trait Output {
    /// Writes bytes of a tensor from `byte_offset` on. Every byte of every tensor must be written once.
    fn write(&self, file: usize, tensor: usize, byte_offset: u64, bytes: &[u8]) -> Result<()>;

    /// Writes whole packed rows into a view, whose strides count elements of `elem_size` bytes.
    fn write_view(
        &self,
        file: usize,
        tensor: usize,
        view: &View,
        rows: Range<usize>,
        elem_size: usize,
        bytes: &[u8],
    ) -> Result<()>;
}

/// Output in the making. Dropped without [`Writer::commit`] or [`Writer::abandon`], it leaves nothing behind of its own.
#[derive(Debug)]
pub struct Writer {
    // These two before `staging`, as files must be closed before Windows lets them be removed.
    handles: Handles,
    finisher: Finisher,
    /// Small writes that wait for their neighbours.
    gathered: Gathered,
    files: Vec<WriterFile>,
    /// What came of the jobs of the files that an earlier run had finished.
    jobs: BTreeMap<usize, Value>,
    /// What the input was like.
    stamps: Stamps,
    staging: Staging,
}

/// A file in the making.
#[derive(Debug)]
struct WriterFile {
    slots: Vec<Slot>,
    /// What closes it, if it is an archive.
    archive: Option<torch::Archive>,
    growth: Mutex<Growth>,
    /// Bytes that were written, and how many there are to be until the disk is told to take them.
    dirty: AtomicU64,
    flush_at: AtomicU64,
    /// From an earlier run: complete, and not to be touched.
    finished: Option<WrittenFile>,
    /// Whether it was said that it is complete.
    completed: AtomicBool,
}

/// How far a file is complete from its start on.
#[derive(Debug)]
struct Growth {
    /// Tensors in the order of their places, and how many of them are complete.
    order: Vec<usize>,
    complete: usize,
    /// The byte that was said last.
    said: u64,
}

/// Bytes that are written to a file until the disk is told to take them: first, so that little is left to wait for at the
/// end of a small one, then as many again as there are, and at most.
const DIRTY: [u64; 2] = [16 << 20, 64 << 20];
/// Bytes that a file grows by until it is worth saying.
const GROWN: u64 = 1 << 20;

/// A tensor's place in its file.
#[derive(Debug)]
struct Slot {
    name: String,
    start: u64,
    bytes: u64,
    written: AtomicU64,
    /// Kept where the file's format wants one.
    checksum: Option<Checksum>,
    /// Held exclusively while bytes between a view's elements are read and written back.
    gate: RwLock<()>,
}

impl Slot {
    fn is_written(&self) -> bool {
        self.written.load(Ordering::Acquire) >= self.bytes
    }

    /// The first byte after it.
    fn end(&self) -> u64 {
        self.start + self.bytes
    }
}

impl Writer {
    /// Adds a small file, such as `config.json` or the index, to an output directory.
    pub fn add_file(&mut self, name: &Path, bytes: &[u8]) -> Result<()> {
        let (mut file, path) = self.create_file(name)?;
        file.write_all(bytes).map_err(Error::io("write", path))
    }

    /// Copies a file's contents into an output directory, creating subdirectories as needed.
    pub fn copy_file(&mut self, from: &Path, name: &Path) -> Result<()> {
        let mut source = File::open(from).map_err(Error::io("open", from))?;
        let (mut file, _) = self.create_file(name)?;
        io::copy(&mut source, &mut file).map_err(Error::io("copy", from))?;
        Ok(())
    }

    fn create_file(&self, name: &Path) -> Result<(File, PathBuf)> {
        let inside = name.components().all(|c| matches!(c, Component::Normal(_)));
        if !self.staging.is_directory() || !inside || name == Path::new("") {
            let what = "internal error: no place for it in the output";
            return Err(Error::io("write", name)(io::Error::other(what)));
        }
        let path = self.staging.work.output().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        Ok((file, path))
    }

    fn slot(&self, file: usize, tensor: usize) -> Result<&Slot> {
        self.files
            .get(file)
            .and_then(|file| file.slots.get(tensor))
            .ok_or_else(|| self.misuse(&format!("{file}/{tensor}"), "there is no such tensor".into()))
    }

    fn put(&self, file: usize, at: u64, bytes: &[u8]) -> Result<()> {
        let written = self.handles.get(file).and_then(|handle| write_at(&handle, at, bytes));
        written.map_err(Error::io("write", self.handles.path(file)))
    }

    /// Writes what waits for its neighbours.
    fn flush(&self) -> Result<()> {
        self.gathered.flush(|file, at, bytes| self.put(file, at, bytes))
    }

    /// Reads what was written, also what waits to be.
    fn get(&self, file: usize, at: u64, out: &mut [u8]) -> Result<()> {
        self.flush()?;
        let read = self.handles.get(file).and_then(|handle| read_at(&handle, at, out));
        read.map_err(Error::io("read", self.handles.path(file)))
    }

    /// Counts bytes of a tensor; once they are all there, a longer part of the file may be hashed.
    fn written(&self, file: usize, slot: &Slot, bytes: u64) -> Result<()> {
        let before = slot.written.fetch_add(bytes, Ordering::Release);
        let WriterFile { slots, archive, growth, dirty, flush_at, .. } = &self.files[file];
        let all = dirty.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if all >= flush_at.load(Ordering::Relaxed) {
            flush_at.store(all + all.min(DIRTY[1]), Ordering::Relaxed);
            self.finisher.dirty(file);
        }
        if before + bytes < slot.bytes || archive.is_some() {
            return Ok(());
        }
        let mut growth = growth.lock().unwrap_or_else(PoisonError::into_inner);
        let Growth { order, complete, said } = &mut *growth;
        while let Some(slot) = order.get(*complete).map(|&i| &slots[i])
            && slot.is_written()
        {
            *complete += 1;
        }
        let end = complete.checked_sub(1).map_or(0, |last| slots[order[last]].end());
        if end - *said >= GROWN {
            *said = end;
            self.gathered.flush_before(file, end, |file, at, bytes| self.put(file, at, bytes))?;
            self.finisher.grown(file, end);
        }
        Ok(())
    }

    /// The caller did what it must not: a mistake in monoquant, not in the input.
    fn misuse(&self, tensor: &str, what: String) -> Error {
        let text = format!("internal error: tensor `{tensor}`: {what}");
        Error::io("write", self.staging.destination())(io::Error::other(text))
    }
}

impl Output for Writer {
    fn write(&self, file: usize, tensor: usize, byte_offset: u64, bytes: &[u8]) -> Result<()> {
        let slot = self.slot(file, tensor)?;
        if self.is_finished(file) {
            return Ok(());
        }
        let end = byte_offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > slot.bytes) {
            let what =
                format!("{} bytes at byte {byte_offset} reach past its {} bytes", bytes.len(), slot.bytes);
            return Err(self.misuse(&slot.name, what));
        }
        let _shared = slot.gate.read().unwrap_or_else(PoisonError::into_inner);
        self.gathered.add(file, slot.start + byte_offset, bytes, |f, at, run| self.put(f, at, run))?;
        if let Some(checksum) = &slot.checksum {
            checksum.add(byte_offset, bytes);
        }
        self.written(file, slot, bytes.len() as u64)
    }

    /// Long runs are written on their own; short ones together with what lies between them, which other threads may
    /// write through this writer at the same time. Views that put two elements into one place are refused.
    fn write_view(
        &self,
        file: usize,
        tensor: usize,
        view: &View,
        rows: Range<usize>,
        elem_size: usize,
        bytes: &[u8],
    ) -> Result<()> {
        let slot = self.slot(file, tensor)?;
        if self.is_finished(file) {
            return Ok(());
        }
        let elem = elem_size as u64;
        if elem == 0 || !slot.bytes.is_multiple_of(elem) {
            let what = format!("{} bytes are no whole elements of {elem_size}", slot.bytes);
            return Err(self.misuse(&slot.name, what));
        }
        let lattice = Lattice::new(view, rows, 0..view.cols, slot.bytes / elem)
            .map_err(|what| self.misuse(&slot.name, what))?;
        if lattice.elements().checked_mul(elem) != Some(bytes.len() as u64) {
            let what = format!("{} bytes for another number of elements", bytes.len());
            return Err(self.misuse(&slot.name, what));
        }
        if !lattice.is_distinct() {
            return Err(self.misuse(&slot.name, format!("lines of {view:?} reach into each other")));
        }
        let read = |at, out: &mut [u8]| self.get(file, slot.start + at, out);
        let write = |at, run: &[u8]| self.put(file, slot.start + at, run);
        if lattice.rewrites(elem) {
            let _alone = slot.gate.write().unwrap_or_else(PoisonError::into_inner);
            lattice.scatter(elem, bytes, read, write)?;
        } else {
            let _shared = slot.gate.read().unwrap_or_else(PoisonError::into_inner);
            lattice.scatter(elem, bytes, read, write)?;
        }
        self.written(file, slot, bytes.len() as u64)
    }
}
