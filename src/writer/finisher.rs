//! What happens to files once their bytes are there, on a thread of its own: digest, flush, and a line in the manifest.

use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use serde_json::Value;

use super::digest::{Growing, WrittenFile};
use super::manifest::Manifest;
use crate::error::{Error, Result};
use crate::reader::Stamps;

/// The thread. It is stopped when this is dropped.
#[derive(Debug)]
pub(super) struct Finisher {
    sender: Option<Sender<Message>>,
    thread: Option<JoinHandle<HashMap<usize, WrittenFile>>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    failed: Mutex<Option<Error>>,
    stopped: AtomicBool,
}

enum Message {
    /// The bytes of a file before this one do not change any more.
    Grown(usize, u64),
    /// A file is complete, and this came of the jobs that made it.
    Complete(usize, BTreeMap<usize, Value>),
}

/// What the thread works on.
pub(super) struct Files {
    /// Name and path of every file.
    pub files: Vec<(String, PathBuf)>,
    /// Where finished files are noted, if they are, and its folder.
    pub manifest: Option<(Manifest, PathBuf)>,
    /// A file that was made of an input which has changed is not finished.
    pub stamps: Stamps,
}

impl Finisher {
    pub fn start(files: Files) -> Self {
        let (sender, receiver) = channel();
        let shared = Arc::new(Shared::default());
        let seen = shared.clone();
        let thread = thread::spawn(move || work(files, &receiver, &seen));
        Finisher { sender: Some(sender), thread: Some(thread), shared }
    }

    /// The bytes of a file before `end` are there for good.
    pub fn grown(&self, file: usize, end: u64) {
        self.send(Message::Grown(file, end));
    }

    /// A file is complete.
    pub fn complete(&self, file: usize, jobs: BTreeMap<usize, Value>) -> Result<()> {
        self.send(Message::Complete(file, jobs));
        self.failed()
    }

    /// Waits for everything that was handed over; the digests of complete files.
    pub fn end(&mut self) -> Result<HashMap<usize, WrittenFile>> {
        self.sender.take();
        let written = self.thread.take().map(JoinHandle::join);
        self.failed()?;
        match written {
            Some(Ok(written)) => Ok(written),
            _ => Err(Error::io("finish", "output")(std::io::Error::other("internal error: a thread failed"))),
        }
    }

    fn send(&self, message: Message) {
        // a thread that is gone has said why
        let _ = self.sender.as_ref().map(|sender| sender.send(message));
    }

    fn failed(&self) -> Result<()> {
        self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

impl Drop for Finisher {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.sender.take();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn work(mut files: Files, receiver: &Receiver<Message>, shared: &Shared) -> HashMap<usize, WrittenFile> {
    let mut growing = HashMap::new();
    let mut written = HashMap::new();
    for message in receiver {
        if shared.stopped.load(Ordering::Relaxed) {
            break;
        }
        if let Err(e) = files.take(message, &mut growing, &mut written) {
            shared.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            break;
        }
    }
    written
}

impl Files {
    fn take(
        &mut self,
        message: Message,
        growing: &mut HashMap<usize, Growing>,
        written: &mut HashMap<usize, WrittenFile>,
    ) -> Result<()> {
        let (Message::Grown(file, _) | Message::Complete(file, _)) = message;
        let (name, path) = &self.files[file];
        let mut hashed = match growing.remove(&file) {
            Some(hashed) => hashed,
            None => Growing::open(path).map_err(Error::io("read", path))?,
        };
        match message {
            Message::Grown(_, end) => {
                hashed.advance(end).map_err(Error::io("read", path))?;
                growing.insert(file, hashed);
            }
            Message::Complete(_, jobs) => {
                // The disk is slow where a core is busy: both at a time.
                let (flushed, digest) = thread::scope(|scope| {
                    let flushing = scope.spawn(|| OpenOptions::new().write(true).open(path)?.sync_all());
                    let digest = hashed.finish();
                    (flushing.join(), digest)
                });
                let (bytes, sha256) = digest.map_err(Error::io("read", path))?;
                match flushed {
                    Ok(flushed) => flushed.map_err(Error::io("flush", path))?,
                    Err(_) => return Err(Error::io("flush", path)(std::io::Error::other("a thread failed"))),
                }
                let file_written = WrittenFile { name: name.clone(), bytes, sha256 };
                if let Some((manifest, folder)) = &mut self.manifest {
                    self.stamps.check()?;
                    manifest.finished.push(file_written.clone());
                    manifest.jobs.extend(jobs);
                    manifest.save(folder)?;
                }
                written.insert(file, file_written);
            }
        }
        Ok(())
    }
}
