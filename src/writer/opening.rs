//! Output at its beginning: a place of its own, files of full size, and what an earlier run has finished of them.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, RwLock};

use fs4::FileExt;

use super::checksum::Checksum;
use super::destination::{Destination, Staging, free_bytes};
use super::finisher::{Files, Finisher};
use super::gathered::Gathered;
use super::layout::{FileLayout, Placed};
use super::manifest::{Identity, Manifest};
use super::workplace::bytes_in;
use super::{DIRTY, Growth, Slot, Writer, WriterFile};
use crate::error::{Error, Result};
use crate::reader::Stamps;
use crate::reader::handles::{Handles, write_at};
use crate::report;
use crate::threads;

/// How an output begins.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Replace what is at the destination.
    pub replace: bool,
    /// Throw away what an unfinished run had finished.
    pub discard: bool,
    /// Go on with it.
    pub resume: bool,
    /// Of an output of several files: what another run must have in common with this one to go on with it.
    pub identity: Option<Identity>,
    /// What the files of the input were like.
    pub stamps: Stamps,
}

impl Writer {
    /// [`Writer::start`] with nothing to go on with.
    pub fn create(dest: &Destination, files: Vec<FileLayout>, force: bool) -> Result<Writer> {
        Self::start(dest, files, Start { replace: force, discard: force, ..Start::default() })
    }

    /// Creates the files at full size, in a hidden place beside the destination, with their headers.
    ///
    /// A [`Destination::File`] takes exactly one layout. Refused are an existing destination unless it may be replaced,
    /// one that another run is writing, and what an unfinished run left, unless it is said what to do with it.
    pub fn start(dest: &Destination, files: Vec<FileLayout>, start: Start) -> Result<Writer> {
        if matches!(dest, Destination::Memory(_)) || matches!(dest, Destination::File(_)) && files.len() != 1
        {
            let what = format!("internal error: {} layouts for one output", files.len());
            return Err(Error::io("write", dest.path())(io::Error::other(what)));
        }
        let placed: Vec<_> = files.iter().map(FileLayout::place).collect::<Result<_>>()?;
        check_names(&files)?;
        threads::start()?;
        let mut staging = Staging::create(dest, start.replace)?;
        let earlier = take_over(&mut staging, &start)?;
        let output = staging.work.output();
        let (names, paths): (Vec<String>, Vec<PathBuf>) = match dest {
            Destination::File(_) | Destination::Memory(_) => {
                let name = staging.destination().file_name().unwrap_or_default();
                (vec![name.to_string_lossy().into_owned()], vec![output])
            }
            Destination::Directory(_) => {
                let name = |layout: &FileLayout| layout.path().to_string_lossy().replace('\\', "/");
                (files.iter().map(name).collect(), files.iter().map(|f| output.join(f.path())).collect())
            }
        };
        let finished = |name: &String| {
            earlier.as_ref().and_then(|m| m.finished.iter().find(|file| file.name == *name).cloned())
        };
        let finished: Vec<_> = names.iter().map(finished).collect();
        let missing: Vec<_> =
            (paths.iter().zip(&placed)).zip(&finished).filter(|(_, f)| f.is_none()).map(|(m, _)| m).collect();
        if staging.is_directory() {
            for parent in paths.iter().filter_map(|path| path.parent()) {
                fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            }
        }
        make(&missing, &staging)?;

        let file = |((layout, placed), finished): ((FileLayout, Placed), _)| {
            let archive = placed.archive;
            let slot = |(info, (start, bytes)): (crate::tensor::TensorInfo, (u64, u64))| Slot {
                name: info.name,
                start,
                bytes,
                written: AtomicU64::new(0),
                checksum: archive.is_some().then(Checksum::default),
                gate: RwLock::default(),
            };
            let slots: Vec<Slot> = layout.tensors.into_iter().zip(placed.spans).map(slot).collect();
            let mut order: Vec<usize> = (0..slots.len()).collect();
            order.sort_by_key(|&i| (slots[i].start, slots[i].bytes));
            let growth = Mutex::new(Growth { order, complete: 0, said: 0 });
            let (dirty, flush_at) = (AtomicU64::new(0), AtomicU64::new(DIRTY[0]));
            WriterFile {
                dirty,
                flush_at,
                slots,
                archive,
                growth,
                finished,
                completed: AtomicBool::new(false),
            }
        };
        let files = files.into_iter().zip(placed).zip(finished).map(file).collect();
        let jobs = earlier.as_ref().map_or_else(BTreeMap::new, |manifest| manifest.jobs.clone());
        let manifest = start.identity.map(|identity| earlier.unwrap_or_else(|| Manifest::new(identity)));
        let finisher = Finisher::start(Files {
            files: names.into_iter().zip(paths.iter().cloned()).collect(),
            manifest: manifest.map(|manifest| (manifest, staging.work.path().to_owned())),
            stamps: start.stamps.clone(),
        })?;
        let handles = Handles::new(paths, true);
        let gathered = Gathered::default();
        Ok(Writer { handles, finisher, gathered, files, jobs, stamps: start.stamps, staging })
    }

    /// What the user should know of what was found.
    pub fn notes(&self) -> &[String] {
        &self.staging.notes
    }
}

/// What an earlier run has finished, if this one goes on with it. Whatever else it left is removed.
fn take_over(staging: &mut Staging, start: &Start) -> Result<Option<Manifest>> {
    let folder = staging.work.path().to_owned();
    let shown = folder.display();
    let again = |why: &str| format!("--resume: {why}; the run starts from the beginning");
    if !staging.work.found {
        if start.resume {
            staging.notes.push(again("no unfinished run of this output was found"));
        }
        return Ok(None);
    }
    let manifest = Manifest::read(&folder).filter(|manifest| !manifest.finished.is_empty());
    let size = report::bytes(bytes_in(&folder));
    match (manifest, &start.identity) {
        (Some(mut manifest), Some(identity)) if start.resume => {
            manifest.check(identity, &folder)?;
            let output = staging.work.output();
            let known = manifest.finished.len();
            staging.notes.extend(manifest.verify(&output));
            manifest.prune(&output)?;
            super::workplace::remove(&staging.work.replaced())?;
            let count = manifest.finished.len();
            staging.notes.push(format!(
                "--resume: {count} of {known} files that an earlier run had finished are as they were, and stay"
            ));
            manifest.save(&folder)?;
            Ok(Some(manifest))
        }
        (Some(manifest), _) if !start.discard && !start.resume => Err(Error::refused(format!(
            "{shown}: an unfinished run left {} finished files ({size}); --resume goes on with them, --force starts anew \
             and removes them",
            manifest.finished.len()
        ))),
        (Some(manifest), None) if start.resume && !start.discard => Err(Error::refused(format!(
            "{shown}: an unfinished run left {} finished files ({size}) of an output of several; this one is a single \
             file; --force starts anew and removes them",
            manifest.finished.len()
        ))),
        _ => {
            staging.work.clear()?;
            staging.work.keep = false;
            staging.notes.push(format!("{shown}: what an unfinished run had left ({size}) was removed"));
            if start.resume {
                staging.notes.push(again("it had finished no file"));
            }
            Ok(None)
        }
    }
}

/// Refuses files of one name, and tensors of one name in a folder.
fn check_names(files: &[FileLayout]) -> Result<()> {
    let (mut names, mut tensors) = (HashSet::new(), HashSet::new());
    for layout in files {
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
    Ok(())
}

/// Makes files of full size, with what is known before a tensor is written.
fn make(files: &[(&PathBuf, &Placed)], staging: &Staging) -> Result<()> {
    let destination = staging.destination();
    let needed = files.iter().fold(0u64, |sum, (_, placed)| sum.saturating_add(placed.size));
    let free = free_bytes(destination)?;
    // File systems that do not count, as some in user space, report 0.
    if needed > free && free > 0 {
        return Err(Error::io("write", destination)(full(needed, free)));
    }
    for (path, placed) in files {
        let file = File::create_new(path).map_err(Error::io("create", path))?;
        reserve(&file, placed.size)
            .and_then(|()| placed.fixed.iter().try_for_each(|(at, bytes)| write_at(&file, *at, bytes)))
            .map_err(|e| match e.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    full(needed, free_bytes(destination).unwrap_or(0))
                }
                _ => e,
            })
            .map_err(Error::io("write", destination))?;
    }
    Ok(())
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
