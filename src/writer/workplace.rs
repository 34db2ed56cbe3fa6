//! The folder that a run works in, hidden beside its destination, and held by a lock that ends with the process.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::digest::sha256;
use super::manifest::Manifest;
use crate::error::{Error, Result};

/// Held by the run at work. The system takes the lock back when a process ends, however it ends.
const LOCK: &str = "lock";
/// The output in the making: a file or a directory.
const OUTPUT: &str = "output";
/// What is to be replaced, while it is moved aside.
const REPLACED: &str = "replaced";

/// The folder. Removed when dropped, unless it is to be kept.
#[derive(Debug)]
pub(super) struct Workplace {
    path: PathBuf,
    lock: Option<File>,
    /// Whether the folder stays behind, for a later run to go on with.
    pub keep: bool,
    /// Whether an earlier run had left it.
    pub found: bool,
}

impl Workplace {
    /// Where a run works whose output is to be `parent/name`.
    pub fn beside(parent: &Path, name: &OsStr) -> PathBuf {
        let mut hidden = OsString::from(".");
        // File systems allow 255 bytes.
        match name.len() <= 200 {
            true => hidden.push(name),
            false => hidden.push(&sha256(name.as_encoded_bytes())[..16]),
        }
        hidden.push(".monoquant-partial");
        parent.join(hidden)
    }

    /// Makes or finds the folder, and takes its lock. Refused while another run holds it.
    pub fn take(path: PathBuf, destination: &Path) -> Result<Self> {
        loop {
            let found = match fs::create_dir(&path) {
                Ok(()) => false,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => true,
                Err(e) => return Err(Error::io("write in", path.parent().unwrap_or(&path))(e)),
            };
            if found {
                check_found(&path)?;
            }
            let place = path.join(LOCK);
            let opened = File::options().read(true).write(true).create(true).truncate(false).open(&place);
            let mut lock = match opened {
                Ok(lock) => lock,
                // the run that had the folder removed it just now
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("open", &place)(e)),
            };
            match lock.try_lock() {
                Ok(()) if !same(&lock, &place) => continue,
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(busy(lock, destination, &path)),
                // a file system without locks
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
                Err(TryLockError::Error(e)) => return Err(Error::io("lock", &place)(e)),
            }
            let noted = lock.set_len(0).and_then(|()| writeln!(lock, "process {}", std::process::id()));
            let work = Workplace { path, lock: Some(lock), keep: found, found };
            noted.map_err(Error::io("write", &place))?;
            return Ok(work);
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The output in the making.
    pub fn output(&self) -> PathBuf {
        self.path.join(OUTPUT)
    }

    /// Where what is to be replaced waits.
    pub fn replaced(&self) -> PathBuf {
        self.path.join(REPLACED)
    }

    /// Removes everything in it but the lock.
    pub fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.path).map_err(Error::io("list", &self.path))? {
            let entry = entry.map_err(Error::io("list", &self.path))?;
            if entry.file_name() != LOCK {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Gives the lock back by name: a process that was forked from this one holds a copy of the handle until it runs
    /// its own program, and closing ours would leave the lock with it.
    fn release(&mut self) {
        let _ = self.lock.take().map(|lock| lock.unlock());
    }

    /// Removes it, the lock last.
    pub fn remove(&mut self) -> Result<()> {
        self.keep = true;
        self.clear()?;
        let place = self.path.join(LOCK);
        let unlinked = fs::remove_file(&place);
        self.release();
        if unlinked.is_err() {
            fs::remove_file(&place).map_err(Error::io("remove", &place))?;
        }
        // If a run took the folder in between, it is no longer ours to remove.
        let _ = fs::remove_dir(&self.path);
        Ok(())
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // what was moved aside and could not be moved back must not go with the folder
        if !self.keep && !self.replaced().exists() {
            let _ = self.remove();
        }
        self.release();
    }
}

/// Refuses a folder that no run has left: what is in it would be removed.
fn check_found(path: &Path) -> Result<()> {
    let refuse = |what: String| {
        let path = path.display();
        Err(Error::refused(format!("{path}: {what}; a run works in a folder of this name, so move it away")))
    };
    let entries = match fs::symlink_metadata(path) {
        Ok(kind) if kind.is_dir() => fs::read_dir(path),
        Ok(_) => return refuse("is not a folder".into()),
        Err(e) => Err(e),
    };
    let entries = match entries {
        Ok(entries) => entries,
        // the run that had it removed it just now
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("list", path)(e)),
    };
    for entry in entries {
        let entry = entry.map_err(Error::io("list", path))?;
        let name = entry.file_name();
        let ours = name == OUTPUT || name == REPLACED || Manifest::NAMES.iter().any(|n| name == *n);
        let link = name == LOCK && !entry.file_type().is_ok_and(|kind| kind.is_file());
        if link || !ours && name != LOCK {
            return refuse(format!("holds {}, which no run has left there", name.to_string_lossy()));
        }
    }
    Ok(())
}

/// Removes a file or a directory, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(kind) if kind.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Bytes of everything in a folder (or of a file), as far as it can be seen.
pub(super) fn bytes_in(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(kind) if kind.is_dir() => {
            fs::read_dir(path).into_iter().flatten().flatten().map(|entry| bytes_in(&entry.path())).sum()
        }
        Ok(kind) => kind.len(),
        Err(_) => 0,
    }
}

/// Whether the file that was locked is still the one of this name.
fn same(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |kind: fs::Metadata| (kind.dev(), kind.ino());
        let (held, named) = (file.metadata().map(identity), fs::metadata(path).map(identity));
        matches!((held, named), (Ok(held), Ok(named)) if held == named)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

fn busy(mut lock: File, destination: &Path, path: &Path) -> Error {
    let mut who = String::new();
    let read = lock.rewind().and_then(|()| lock.read_to_string(&mut who));
    let who =
        if read.is_ok() && !who.trim().is_empty() { format!(" ({})", who.trim()) } else { String::new() };
    Error::refused(format!(
        "{}: another run{who} is writing it, in {}; wait for it, or name another place with --output",
        destination.display(),
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a process that is being started has them, and a worker forked by Python.
    #[test]
    fn a_copy_of_the_handle_elsewhere_does_not_hold_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let take = || Workplace::take(folder.path().join("work"), Path::new("out"));
        let mut work = take().unwrap();
        let copy = work.lock.as_ref().unwrap().try_clone().unwrap();
        assert!(take().unwrap_err().to_string().contains("another run"));
        work.keep = true;
        drop(work);
        let found = take().unwrap();
        assert!(found.found);
        drop((found, copy));
    }
}
