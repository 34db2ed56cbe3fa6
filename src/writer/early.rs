//! Bytes go to the disk while the run still makes others, so that little is left to be waited for at the end.
//!
//! Nothing is promised by it: the flush before the output is moved into its place is done all the same.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::error::{Error, Result};
use crate::reader::handles::Handles;

/// Bytes that are worth a flush.
const STEP: u64 = 32 << 20;

/// Flushes files on a thread of its own, which starts with the first that is large enough.
#[derive(Debug, Default)]
pub(super) struct Early {
    /// Bytes that were written since the last flush was asked for.
    written: AtomicU64,
    flusher: Mutex<Option<Flusher>>,
}

#[derive(Debug)]
struct Flusher {
    files: SyncSender<usize>,
    /// How often it flushed.
    thread: JoinHandle<Result<usize>>,
}

impl Early {
    /// To be told of bytes that were written to a file of these. Does not wait.
    pub fn wrote(&self, handles: &Arc<Handles>, file: usize, bytes: usize) {
        if self.written.fetch_add(bytes as u64, Ordering::Relaxed) + (bytes as u64) < STEP {
            return;
        }
        let mut flusher = self.flusher.lock().unwrap_or_else(PoisonError::into_inner);
        if flusher.is_none() {
            *flusher = Flusher::start(handles.clone()).ok(); // where threads have run out, all is flushed at the end
        }
        // one that is still at work is asked again with the next bytes
        if flusher.as_ref().is_some_and(|flusher| flusher.files.try_send(file).is_ok()) {
            self.written.store(0, Ordering::Relaxed);
        }
    }

    /// Ends the thread; says how often it flushed, or what could not be flushed: the system says so only once.
    pub fn finish(&self) -> Result<usize> {
        let flusher = self.flusher.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Flusher { files, thread }) = flusher else { return Ok(0) };
        drop(files);
        thread.join().unwrap_or(Ok(0)) // it does nothing that could panic
    }
}

impl Drop for Early {
    /// A file that is to be removed must not be open, for Windows.
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

impl Flusher {
    fn start(handles: Arc<Handles>) -> io::Result<Self> {
        // without a place for a message to wait in: it is sent if the thread waits for one
        let (files, asked) = sync_channel::<usize>(0);
        let flush = move || {
            let mut flushes = 0;
            for file in asked {
                let flushed = handles.get(file).and_then(|handle| handle.sync_data());
                flushed.map_err(Error::io("flush", handles.path(file)))?;
                flushes += 1;
            }
            Ok(flushes)
        };
        let thread = thread::Builder::new().name("flush".into()).spawn(flush)?;
        Ok(Flusher { files, thread })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells of bytes until the thread, which may not wait for a message yet, took one.
    fn flush(early: &Early, handles: &Arc<Handles>) {
        loop {
            early.wrote(handles, 0, STEP as usize);
            if early.written.load(Ordering::Relaxed) == 0 {
                return;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn every_so_many_bytes_are_flushed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "bytes").unwrap();
        let handles = Arc::new(Handles::new(vec![path], true));
        let early = Early::default();
        early.wrote(&handles, 0, STEP as usize - 1);
        assert!(early.flusher.lock().unwrap().is_none(), "too few for a thread");
        flush(&early, &handles);
        flush(&early, &handles);
        assert_eq!(early.finish().unwrap(), 2);
        assert_eq!(early.finish().unwrap(), 0);
        assert_eq!(Arc::strong_count(&handles), 1, "nothing holds the files any more");
    }

    #[test]
    fn what_cannot_be_flushed_is_said_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let handles = Arc::new(Handles::new(vec![folder.path().join("absent")], true));
        let early = Early::default();
        flush(&early, &handles);
        let error = early.finish().unwrap_err().to_string();
        assert!(error.contains("flush") && error.contains("absent"), "{error}");
    }
}
