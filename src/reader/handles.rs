//! Open files, never more than a process may have, read and written at positions.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Files kept open at a time. The usual limits of a process are 256 (macOS) and 1024 (Linux).
pub(crate) const OPEN: usize = 64;

/// A set of files, opened when needed; of many, the least recently used are closed again.
#[derive(Debug)]
pub(crate) struct Handles {
    paths: Vec<PathBuf>,
    options: OpenOptions,
    /// Least recently used first.
    open: Mutex<Vec<(usize, Arc<File>)>>,
}

impl Handles {
    /// Files to read from, or, if `write`, to read from and write to.
    pub fn new(paths: Vec<PathBuf>, write: bool) -> Self {
        let mut options = OpenOptions::new();
        options.read(true).write(write);
        Handles { paths, options, open: Mutex::default() }
    }

    /// The path of a file of the set.
    pub fn path(&self, file: usize) -> &Path {
        self.paths.get(file).map_or(Path::new(""), PathBuf::as_path)
    }

    /// The file, opened now if it was not. It stays usable while the caller holds it.
    pub fn get(&self, file: usize) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|(i, _)| *i == file) {
            let entry = open.remove(at);
            let handle = entry.1.clone();
            open.push(entry);
            return Ok(handle);
        }
        let path = self.paths.get(file).ok_or_else(|| io::Error::other("no such file number"))?;
        if open.len() >= OPEN {
            open.remove(0);
        }
        let handle = Arc::new(self.options.open(path)?);
        open.push((file, handle.clone()));
        Ok(handle)
    }

    /// How many files are open.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.open.lock().unwrap().len()
    }
}

/// Fills `out` from the bytes at `offset`.
pub(crate) fn read_at(file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, out, offset);
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < out.len() {
            match std::os::windows::fs::FileExt::seek_read(file, &mut out[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::write_all_at(file, bytes, offset);
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < bytes.len() {
            match std::os::windows::fs::FileExt::seek_write(file, &bytes[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
