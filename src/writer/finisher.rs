//! What happens to files once their bytes are there, on a thread of its own: digest, flush, and a line in the manifest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, ScopedJoinHandle};

use serde_json::Value;

use super::digest::{Growing, WrittenFile};
use super::manifest::Manifest;
use crate::error::{Error, Result};
use crate::reader::Stamps;
use crate::threads;

/// The thread. It is stopped when this is dropped.
#[derive(Debug)]
pub(super) struct Finisher {
    sender: Option<Sender<Message>>,
    thread: Option<JoinHandle<HashMap<usize, WrittenFile>>>,
    flusher: Option<(Sender<usize>, JoinHandle<()>)>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    failed: Mutex<Option<Error>>,
    stopped: AtomicBool,
}

/// Bytes that are hashed between two looks at what is new.
const STEP: u64 = 8 << 20;

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
    pub fn start(files: Files) -> Result<Self> {
        let (sender, receiver) = channel();
        let shared = Arc::new(Shared::default());
        let (dirty, dirtied) = channel();
        let paths: Vec<PathBuf> = files.files.iter().map(|(_, path)| path.clone()).collect();
        let seen = shared.clone();
        let flusher = threads::spawn(move || flush(&paths, &dirtied, &seen))?;
        let seen = shared.clone();
        let thread = threads::spawn(move || work(files, &receiver, &seen))?;
        Ok(Finisher { sender: Some(sender), thread: Some(thread), flusher: Some((dirty, flusher)), shared })
    }

    /// The bytes of a file before `end` are there for good.
    pub fn grown(&self, file: usize, end: u64) {
        self.send(Message::Grown(file, end));
    }

    /// Much was written to a file: the disk may begin with it.
    pub fn dirty(&self, file: usize) {
        let _ = self.flusher.as_ref().map(|(sender, _)| sender.send(file));
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
        self.flushed();
        self.failed()?;
        match written {
            Some(Ok(written)) => Ok(written),
            _ => Err(Error::io("finish", "output")(io::Error::other("internal error: a thread failed"))),
        }
    }

    fn flushed(&mut self) {
        if let Some((sender, thread)) = self.flusher.take() {
            drop(sender);
            let _ = thread.join();
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
        self.flushed();
    }
}

impl Shared {
    fn fail(&self, error: Error) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// Flushes what was written of files while they are in the making, so that little is left to wait for at their end. The
/// system tells an error of the disk once: it must not go unheard here.
fn flush(paths: &[PathBuf], receiver: &Receiver<usize>, shared: &Shared) {
    while let Ok(first) = receiver.recv() {
        let files: BTreeSet<usize> = receiver.try_iter().chain([first]).collect();
        for path in files.iter().map(|&file| &paths[file]) {
            if shared.stopped.load(Ordering::Relaxed) {
                return;
            }
            let flushed = OpenOptions::new().write(true).open(path).and_then(|file| file.sync_data());
            if let Err(e) = flushed {
                return shared.fail(Error::io("flush", path)(e));
            }
        }
    }
}

fn work(files: Files, receiver: &Receiver<Message>, shared: &Shared) -> HashMap<usize, WrittenFile> {
    let mut work = Work { files, growing: HashMap::new(), ends: BTreeMap::new(), written: HashMap::new() };
    loop {
        // what is complete goes before what grows
        let message = match work.ends.is_empty() {
            true => receiver.recv().map(Some).map_err(|_| ()),
            false => match receiver.try_recv() {
                Ok(message) => Ok(Some(message)),
                Err(TryRecvError::Empty) => Ok(None),
                Err(TryRecvError::Disconnected) => Err(()),
            },
        };
        let Ok(message) = message else { break };
        if shared.stopped.load(Ordering::Relaxed) {
            break;
        }
        let done = match message {
            Some(Message::Grown(file, end)) => {
                work.ends.insert(file, end);
                Ok(())
            }
            Some(Message::Complete(file, jobs)) => work.complete(file, jobs),
            None => work.follow(),
        };
        if let Err(e) = done {
            shared.fail(e);
            break;
        }
    }
    work.written
}

struct Work {
    files: Files,
    growing: HashMap<usize, Growing>,
    /// How far files are complete that are behind with their digest.
    ends: BTreeMap<usize, u64>,
    written: HashMap<usize, WrittenFile>,
}

impl Work {
    fn open(&mut self, file: usize) -> Result<Growing> {
        let path = &self.files.files[file].1;
        let known = self.growing.remove(&file);
        known.map_or_else(|| Growing::open(path), Ok).map_err(Error::io("read", path))
    }

    /// Hashes a part of a file that grows.
    fn follow(&mut self) -> Result<()> {
        let Some((&file, &end)) = self.ends.first_key_value() else { return Ok(()) };
        let mut growing = self.open(file)?;
        let behind = growing.advance(end, STEP).map_err(Error::io("read", &self.files.files[file].1))?;
        self.growing.insert(file, growing);
        if behind == 0 {
            self.ends.remove(&file);
        }
        Ok(())
    }

    fn complete(&mut self, file: usize, jobs: BTreeMap<usize, Value>) -> Result<()> {
        self.ends.remove(&file);
        let growing = self.open(file)?;
        let (name, path) = &self.files.files[file];
        // The disk is slow where a core is busy: both at a time, if there may be a thread.
        let (flushed, digest) = thread::scope(|scope| {
            let flush = || OpenOptions::new().write(true).open(path)?.sync_all();
            let flushing = thread::Builder::new().spawn_scoped(scope, flush);
            let digest = growing.finish();
            (flushing.map_or_else(|_| Ok(flush()), ScopedJoinHandle::join), digest)
        });
        let (bytes, sha256) = digest.map_err(Error::io("read", path))?;
        let flushed = flushed.unwrap_or_else(|_| Err(io::Error::other("internal error: a thread failed")));
        flushed.map_err(Error::io("flush", path))?;
        let written = WrittenFile { name: name.clone(), bytes, sha256 };
        if let Some((manifest, folder)) = &mut self.files.manifest {
            self.files.stamps.check()?;
            manifest.finished.push(written.clone());
            manifest.jobs.extend(jobs);
            manifest.save(folder)?;
        }
        self.written.insert(file, written);
        Ok(())
    }
}
