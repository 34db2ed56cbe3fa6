//! Output at its end: complete and moved into place in one step, or given up, and what then stays.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::digest::{WrittenFile, of_file};
use super::manifest::{Manifest, files_in};
use super::workplace::bytes_in;
use super::{Slot, Writer};
use crate::error::{Error, Result};

impl Writer {
    /// Whether an earlier run had finished this file. What is written into it is ignored.
    pub fn is_finished(&self, file: usize) -> bool {
        self.files.get(file).is_some_and(|file| file.finished.is_some())
    }

    /// What came of the jobs that made these files, as it was given to [`Writer::finish`].
    pub fn earlier_jobs(&self) -> &BTreeMap<usize, Value> {
        &self.jobs
    }

    /// Says that a file is complete, and what came of the jobs that made it. It is then flushed to the disk and noted, so
    /// that a run that is killed later need not make it again.
    pub fn finish(&self, file: usize, jobs: BTreeMap<usize, Value>) -> Result<()> {
        self.check_written(file)?;
        let of = &self.files[file];
        // an archive gets its checksums at the end
        if of.finished.is_some() || of.archive.is_some() || of.completed.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.flush()?;
        self.finisher.complete(file, jobs)
    }

    /// Flushes everything to the disk and moves it onto the destination in one step; the files of it, by name.
    ///
    /// Fails if a byte of a tensor was not written, if the input is not what it was, or if the destination appeared
    /// meanwhile and may not be replaced. It is then given up as [`Writer::abandon`] does.
    pub fn commit(self) -> Result<Vec<WrittenFile>> {
        self.commit_checked(|_| Ok(()))
    }

    /// Like [`Writer::commit`]; the complete output is shown to `check` where it lies, before it is moved.
    pub fn commit_checked(mut self, check: impl FnOnce(&Path) -> Result<()>) -> Result<Vec<WrittenFile>> {
        let completed = self.completed().and_then(|files| check(&self.staging.work.output()).map(|()| files));
        match completed.and_then(|files| self.staging.publish().map(|()| files)) {
            Ok(files) => Ok(files),
            Err(e) => Err(self.abandon(e)),
        }
    }

    /// Gives the output up because of an error. Finished files of several stay if a later run can go on with them, which
    /// the error then says; all else is removed.
    pub fn abandon(self, error: Error) -> Error {
        let Writer { handles, mut finisher, files, mut staging, .. } = self;
        drop(handles);
        let folder = staging.work.path().to_owned();
        staging.work.keep = false;
        // the same would happen again, or the input is another one
        let hopeless = matches!(
            error,
            Error::Usage(_)
                | Error::Refused(_)
                | Error::Format { .. }
                | Error::Changed { .. }
                | Error::Differs(_)
        );
        if hopeless && staging.check().is_ok() {
            drop(finisher);
            return error;
        }
        // files that are complete are still noted
        let _ = finisher.end();
        let Some(manifest) = Manifest::read(&folder).filter(|manifest| !manifest.finished.is_empty()) else {
            return error;
        };
        let _ = manifest.prune(&staging.work.output());
        staging.work.keep = true;
        let (finished, bytes) = (manifest.finished.len(), bytes_in(&folder));
        Error::Unfinished { source: Box::new(error), folder, finished, files: files.len(), bytes }
    }

    /// Completes every file; the files with their digests.
    fn completed(&mut self) -> Result<Vec<WrittenFile>> {
        self.flush()?;
        for file in 0..self.files.len() {
            if self.is_finished(file) || self.files[file].completed.load(Ordering::Relaxed) {
                continue;
            }
            self.check_written(file)?;
            if let Some(archive) = &self.files[file].archive {
                let slots = &self.files[file].slots;
                let crcs: Vec<u32> = slots.iter().map(|slot| self.crc(file, slot)).collect::<Result<_>>()?;
                archive.closing(&crcs).iter().try_for_each(|(at, bytes)| self.put(file, *at, bytes))?;
            }
            self.finisher.complete(file, BTreeMap::new())?;
        }
        let mut written = self.finisher.end()?;
        let files = self.files.iter().enumerate();
        let mut files: Vec<WrittenFile> =
            files.filter_map(|(i, file)| written.remove(&i).or_else(|| file.finished.clone())).collect();
        if self.staging.is_directory() {
            self.add_others(&mut files)?;
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        self.stamps.check()?;
        Ok(files)
    }

    /// Adds what lies beside the files of tensors.
    fn add_others(&self, files: &mut Vec<WrittenFile>) -> Result<()> {
        let output = self.staging.work.output();
        let known: Vec<_> = (0..self.files.len()).map(|file| self.handles.path(file).to_owned()).collect();
        for path in files_in(&output)?.into_iter().filter(|path| !known.contains(path)) {
            let (bytes, sha256) = of_file(&path).map_err(Error::io("read", &path))?;
            let name = path.strip_prefix(&output).unwrap_or(Path::new("")).to_string_lossy();
            files.push(WrittenFile { name: name.replace('\\', "/"), bytes, sha256 });
        }
        Ok(())
    }

    fn check_written(&self, file: usize) -> Result<()> {
        let Some(of) = self.files.get(file) else {
            let what = format!("internal error: there is no file {file}");
            return Err(Error::io("finish", self.staging.destination())(io::Error::other(what)));
        };
        for slot in &of.slots {
            let written = slot.written.load(Ordering::Acquire);
            if written != slot.bytes {
                let what = format!("{written} of its {} bytes were written", slot.bytes);
                return Err(self.misuse(&slot.name, what));
            }
        }
        Ok(())
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
}
