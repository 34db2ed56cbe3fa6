//! The threads that pieces of work share. Where the system gives none, that is said: the libraries would panic.

use crate::error::{Error, Result};
use std::{
    io,
    sync::OnceLock,
    thread::{Builder, JoinHandle},
};

/// Starts the threads of the CPU's kernels, of comparing and hashing, once in a process: as many as there are cores, or
/// as RAYON_NUM_THREADS says.
pub(crate) fn start() -> Result<()> {
    static STARTED: OnceLock<(u32, Option<String>)> = OnceLock::new();
    let process = std::process::id();
    let (of_process, failed) = STARTED.get_or_init(|| {
        // if somebody else has started them, there they are
        let started = rayon::ThreadPoolBuilder::new().build_global();
        let failed =
            started.err().and_then(|e| std::error::Error::source(&e).map(|e| refused(&e.to_string())));
        (process, failed)
    });
    if *of_process != process {
        let what = "this process was forked from one whose threads had been started, and has none of them; start \
                    processes anew (in Python: multiprocessing.get_context(\"spawn\"))";
        return Err(Error::Device(what.into()));
    }
    failed.as_ref().map_or(Ok(()), |what| Err(Error::Device(what.clone())))
}

/// Starts a thread of its own.
pub(crate) fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    Builder::new().spawn(work).map_err(|e: io::Error| Error::Device(refused(&e.to_string())))
}

fn refused(why: &str) -> String {
    format!(
        "threads cannot be started: {why}; a limit on processes or on memory is in the way (ulimit -u, pids of a \
         container); RAYON_NUM_THREADS=1 asks for the fewest"
    )
}
