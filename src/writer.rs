//! Checkpoints out: streamed to any place of any file from any thread, and there at once or not at all.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use fs4::FileExt;

use crate::error::{Error, Result};
use crate::reader::handles::{Handles, read_at, write_at};
use crate::reader::strided::Lattice;
use crate::tensor::{TensorInfo, View};

mod checksum;
mod destination;
mod early;
mod gathered;
mod gguf;
mod layout;
mod memory;
mod profiled;
mod safetensors;
#[cfg(test)]
mod tests;
mod torch;

pub use destination::{Destination, free_bytes};
pub use layout::{Container, FileLayout};
pub use memory::MemoryOutput;
pub use profiled::ProfiledOutput;

use checksum::Checksum;
use destination::Staging;
use early::Early;
use gathered::Gathered;
use layout::Placed;

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

/// Output in the making. Dropped without [`Writer::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct Writer {
    // Before `staging`, as files must be closed before Windows lets them be removed.
    early: Early,
    handles: Arc<Handles>,
    /// Small writes that wait for their neighbours.
    gathered: Gathered,
    files: Vec<Vec<Slot>>,
    /// What closes each file, if it is an archive.
    archives: Vec<Option<torch::Archive>>,
    staging: Staging,
}

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

impl Writer {
    /// Creates the files at full size, under a temporary name beside the destination, with their headers.
    ///
    /// A [`Destination::File`] takes exactly one layout. An existing destination is refused unless `force` is set.
    pub fn create(dest: &Destination, files: Vec<FileLayout>, force: bool) -> Result<Writer> {
        if matches!(dest, Destination::Memory(_)) || matches!(dest, Destination::File(_)) && files.len() != 1
        {
            let what = format!("internal error: {} layouts for one output", files.len());
            return Err(Error::io("write", dest.path())(io::Error::other(what)));
        }
        let placed: Vec<_> = files.iter().map(FileLayout::place).collect::<Result<_>>()?;
        let (mut names, mut tensors) = (HashSet::new(), HashSet::new());
        for layout in &files {
            if !names.insert(layout.path()) {
                return Err(Error::format(&layout.name, "is the name of two output files"));
            }
            // those of one file were looked at already
            let mut others = layout.tensors.iter().filter(|_| files.len() > 1);
            if let Some(twice) = others.find(|t| !tensors.insert((&layout.folder, &t.name))) {
                let what = format!("tensor `{}` is also in another output file", twice.name);
                return Err(Error::format(&layout.name, what));
            }
        }

        let staging = Staging::create(dest, force)?;
        let paths = match dest {
            Destination::File(_) | Destination::Memory(_) => vec![staging.path().to_owned()],
            Destination::Directory(_) => {
                let paths: Vec<PathBuf> =
                    files.iter().map(|layout| staging.path().join(layout.path())).collect();
                for parent in paths.iter().filter_map(|path| path.parent()) {
                    fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
                }
                paths
            }
        };
        let needed = placed.iter().fold(0u64, |sum, p| sum.saturating_add(p.size));
        let free = free_bytes(dest.path())?;
        // File systems that do not count, as some in user space, report 0.
        if needed > free && free > 0 {
            return Err(Error::io("write", staging.destination())(full(needed, free)));
        }
        for (path, placed) in paths.iter().zip(&placed) {
            let file = match dest {
                Destination::Directory(_) => File::create_new(path),
                _ => File::options().write(true).open(path),
            };
            let file = file.map_err(Error::io("create", path))?;
            reserve(&file, placed.size)
                .and_then(|()| placed.fixed.iter().try_for_each(|(at, bytes)| write_at(&file, *at, bytes)))
                .map_err(|e| match e.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                        full(needed, free_bytes(dest.path()).unwrap_or(0))
                    }
                    _ => e,
                })
                .map_err(Error::io("write", staging.destination()))?;
        }

        let slots = |(layout, placed): (FileLayout, &Placed)| {
            let slot = |(info, &(start, bytes)): (TensorInfo, &(u64, u64))| Slot {
                name: info.name,
                start,
                bytes,
                written: AtomicU64::new(0),
                checksum: placed.archive.is_some().then(Checksum::default),
                gate: RwLock::default(),
            };
            layout.tensors.into_iter().zip(&placed.spans).map(slot).collect()
        };
        let files = files.into_iter().zip(&placed).map(slots).collect();
        let archives = placed.into_iter().map(|p| p.archive).collect();
        Ok(Writer {
            early: Early::default(),
            handles: Arc::new(Handles::new(paths, true)),
            gathered: Gathered::default(),
            files,
            archives,
            staging,
        })
    }

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

    /// Flushes everything to the disk and moves it onto the destination in one step.
    ///
    /// Fails if a byte of a tensor was not written, or if the destination appeared meanwhile and `force` is not set.
    pub fn commit(self) -> Result<()> {
        for slot in self.files.iter().flatten() {
            let written = slot.written.load(Ordering::Relaxed);
            if written != slot.bytes {
                let what = format!("{written} of its {} bytes were written", slot.bytes);
                return Err(self.misuse(&slot.name, what));
            }
        }
        self.flush()?;
        for (file, archive) in self.archives.iter().enumerate() {
            if let Some(archive) = archive {
                let crcs: Vec<u32> =
                    self.files[file].iter().map(|slot| self.crc(file, slot)).collect::<Result<_>>()?;
                archive.closing(&crcs).iter().try_for_each(|(at, bytes)| self.put(file, *at, bytes))?;
            }
        }
        self.early.finish()?;
        let Writer { handles, staging, .. } = self;
        drop(handles);
        staging.publish()
    }

    /// The checksum of a tensor; one that was scattered over its place is read again.
    fn crc(&self, file: usize, slot: &Slot) -> Result<u32> {
        if let Some(crc) = slot.checksum.as_ref().and_then(|checksum| checksum.whole(slot.bytes)) {
            return Ok(crc);
        }
        let mut hasher = crc32fast::Hasher::new();
        let mut buffer = vec![0; slot.bytes.min(4 << 20) as usize];
        let mut at = 0;
        while at < slot.bytes {
            let length = (slot.bytes - at).min(buffer.len() as u64) as usize;
            self.get(file, slot.start + at, &mut buffer[..length])?;
            hasher.update(&buffer[..length]);
            at += length as u64;
        }
        Ok(hasher.finalize())
    }

    fn create_file(&self, name: &Path) -> Result<(File, PathBuf)> {
        let inside = name.components().all(|c| matches!(c, Component::Normal(_)));
        if !self.staging.is_directory() || !inside || name == Path::new("") {
            let what = "internal error: no place for it in the output";
            return Err(Error::io("write", name)(io::Error::other(what)));
        }
        let path = self.staging.path().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        Ok((file, path))
    }

    fn slot(&self, file: usize, tensor: usize) -> Result<&Slot> {
        self.files
            .get(file)
            .and_then(|slots| slots.get(tensor))
            .ok_or_else(|| self.misuse(&format!("{file}/{tensor}"), "there is no such tensor".into()))
    }

    fn put(&self, file: usize, at: u64, bytes: &[u8]) -> Result<()> {
        let written = self.handles.get(file).and_then(|handle| write_at(&handle, at, bytes));
        written.map_err(Error::io("write", self.handles.path(file)))?;
        self.early.wrote(&self.handles, file, bytes.len());
        Ok(())
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

    /// The caller did what it must not: a mistake in monoquant, not in the input.
    fn misuse(&self, tensor: &str, what: String) -> Error {
        let text = format!("internal error: tensor `{tensor}`: {what}");
        Error::io("write", self.staging.destination())(io::Error::other(text))
    }
}

impl Output for Writer {
    fn write(&self, file: usize, tensor: usize, byte_offset: u64, bytes: &[u8]) -> Result<()> {
        let slot = self.slot(file, tensor)?;
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
        slot.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
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
        slot.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Gives a file its size, and the space for it where the system lets it be reserved, so that a full disk shows now.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    use io::ErrorKind::*;
    match FileExt::allocate(file, size) {
        Err(e) if matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge) => return Err(e),
        // A file system that cannot reserve can still hold the file.
        _ => {}
    }
    file.set_len(size)
}

fn full(needed: u64, free: u64) -> io::Error {
    let what = format!("the output takes {needed} bytes, and {free} are free");
    io::Error::new(io::ErrorKind::StorageFull, what)
}
