//! What a run's stages took: as a Chrome trace, which shows what overlaps and who waits for whom, and as sums in the log.
//!
//! The trace opens in chrome://tracing and on ui.perfetto.dev. An event is written when it ends, so that memory does not
//! grow with the run. The file is an array of events, which viewers also take without the bracket that a killed run
//! leaves out.
//!
//! The log (tracing) has a line for every span at DEBUG, and the sums at INFO when the profile is finished.
//!
//! A profile is handed down rather than found through a global, as worker threads and several runs in one process
//! must each find their own.

mod sums;

use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
    time::{Duration, Instant},
};
use sums::Sums;
use tracing::Level;

/// What a run spends time on: the category of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Headers are read, everything is decided.
    Plan,
    /// A device is opened.
    Device,
    /// The device is compared with the CPU in the kernels that the plan needs.
    Verify,
    /// The output's files are made, and companions copied.
    Create,
    /// Bytes of a tensor come from a file, into a tile's own buffer where that is possible.
    Read,
    /// The host's part of an upload to a GPU: commands are recorded and submitted.
    Upload,
    /// Kernels run: on a thread of the CPU, or on a GPU between submission and completion.
    Kernel,
    /// A GPU's results are mapped.
    Readback,
    /// The loop has nothing to do but wait for the oldest tile.
    Wait,
    /// Results are checked, arranged as the layout wants them, and written.
    Store,
    /// Bytes of a tensor go to a file.
    Write,
    /// Everything is flushed to the disk, and moved to its place.
    Commit,
}

impl Stage {
    /// All of them.
    pub const ALL: [Stage; 12] = [
        Stage::Plan,
        Stage::Device,
        Stage::Verify,
        Stage::Create,
        Stage::Read,
        Stage::Upload,
        Stage::Kernel,
        Stage::Readback,
        Stage::Wait,
        Stage::Store,
        Stage::Write,
        Stage::Commit,
    ];

    /// Its name in the trace.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Plan => "plan",
            Stage::Device => "device",
            Stage::Verify => "verify",
            Stage::Create => "create",
            Stage::Read => "read",
            Stage::Upload => "upload",
            Stage::Kernel => "kernel",
            Stage::Readback => "readback",
            Stage::Wait => "wait",
            Stage::Store => "store",
            Stage::Write => "write",
            Stage::Commit => "commit",
        }
    }
}

/// A record in the making. Clones write to the same one.
#[derive(Debug, Clone)]
pub struct Profile(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Of the trace, if one is written.
    path: Option<PathBuf>,
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None if there is no trace, and once it is finished.
    file: Option<BufWriter<File>>,
    /// None once it is finished.
    sums: Option<Sums>,
    failed: Option<io::Error>,
    threads: HashMap<ThreadId, u32>,
    tracks: u32,
    /// Of each device, the tracks of tiles in flight, and whether they are free.
    lanes: BTreeMap<String, Vec<(u32, bool)>>,
    /// Tensors of the tiles in work, by the tiles' tags.
    tensors: HashMap<u64, Arc<str>>,
}

impl Profile {
    /// Creates a trace's file, in place of one that is there. Times count from `start`.
    pub fn create(path: &Path, start: Instant) -> Result<Self> {
        // a new one: what is there may have other names, or be one of another file
        let gone = match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
        let file = gone.and_then(|()| File::create_new(path)).map_err(Error::io("write", path))?;
        let profile = Profile::new(Some((path, file)), start);
        let name = json!({"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "monoquant"}});
        profile.0.state().put("[\n", &name);
        Ok(profile)
    }

    /// For the log alone; None where it does not want this.
    pub fn logged(start: Instant) -> Option<Self> {
        tracing::enabled!(Level::INFO).then(|| Profile::new(None, start))
    }

    fn new(trace: Option<(&Path, File)>, start: Instant) -> Self {
        let (path, file) = trace.map(|(path, file)| (path.to_owned(), BufWriter::new(file))).unzip();
        let state = State {
            file,
            sums: Some(Sums::default()),
            failed: None,
            threads: HashMap::new(),
            tracks: 0,
            lanes: BTreeMap::new(),
            tensors: HashMap::new(),
        };
        Profile(Arc::new(Shared { path, start, state: Mutex::new(state) }))
    }

    /// What the calling thread does until the span is dropped.
    pub fn span(&self, stage: Stage) -> Span {
        self.since(Instant::now(), stage)
    }

    /// The same of something that began earlier.
    pub fn since(&self, start: Instant, stage: Stage) -> Span {
        let what = What { stage, kernels: String::new(), tensor: "".into(), bytes: 0 };
        Span { profile: self.clone(), start, what }
    }

    /// Kernels that the calling thread runs over a tile.
    pub fn kernels<'a>(&self, tag: u64, kernels: impl Iterator<Item = &'a str>, bytes: usize) -> Span {
        Span { profile: self.clone(), start: Instant::now(), what: self.of_tile(tag, kernels, bytes) }
    }

    /// Kernels that a device runs over a tile until the flight is dropped, by whatever thread. Tiles that a device has
    /// in flight at the same time go to tracks of their own.
    pub fn flight<'a>(
        &self,
        device: &str,
        tag: u64,
        kernels: impl Iterator<Item = &'a str>,
        bytes: usize,
    ) -> Flight {
        let what = self.of_tile(tag, kernels, bytes);
        let track = self.0.state().lane(device);
        Flight { profile: self.clone(), device: device.to_owned(), track, start: Instant::now(), what }
    }

    /// Notes the tensor that a tile is a part of, for [`Profile::kernels`] and [`Profile::flight`].
    pub fn tile(&self, tag: u64, tensor: &str) {
        self.0.state().tensors.insert(tag, tensor.into());
    }

    /// Forgets a tile.
    pub fn tile_done(&self, tag: u64) {
        self.0.state().tensors.remove(&tag);
    }

    /// Writes the sums to the log, and closes the trace. Fails if a part of it could not be written. What threads do later
    /// is not recorded.
    pub fn finish(&self) -> Result<()> {
        self.0.finish().map_err(Error::io("write", self.0.path.as_deref().unwrap_or(Path::new(""))))
    }

    fn of_tile<'a>(&self, tag: u64, kernels: impl Iterator<Item = &'a str>, bytes: usize) -> What {
        let kernels = kernels.collect::<Vec<_>>().join(" + ");
        let tensor = self.0.state().tensors.get(&tag).cloned().unwrap_or_else(|| "".into());
        What { stage: Stage::Kernel, kernels, tensor, bytes: bytes as u64 }
    }
}

#[derive(Debug)]
struct What {
    stage: Stage,
    kernels: String,
    tensor: Arc<str>,
    bytes: u64,
}

/// Something that a thread does; recorded when it is dropped.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Span {
    profile: Profile,
    start: Instant,
    what: What,
}

impl Span {
    /// Says which tensor it is about, and how many bytes.
    pub fn of(mut self, tensor: &str, bytes: usize) -> Self {
        self.what.tensor = tensor.into();
        self.what.bytes = bytes as u64;
        self
    }

    /// The same of a tile.
    pub fn of_tile(mut self, tag: u64, bytes: usize) -> Self {
        self.what = What { stage: self.what.stage, ..self.profile.of_tile(tag, [].into_iter(), bytes) };
        self
    }
}

impl What {
    fn log(&self, duration: Duration) {
        let said = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        tracing::debug!(
            stage = self.stage.name(),
            tensor = said(&self.tensor),
            kernels = said(&self.kernels),
            bytes = Some(self.bytes).filter(|&bytes| bytes > 0),
            micros = duration.as_micros() as u64,
            "span"
        );
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let end = Instant::now();
        self.what.log(end.saturating_duration_since(self.start));
        let shared = &self.profile.0;
        let mut state = shared.state();
        let track = state.thread();
        state.record(shared.start, track, self.start, end, &self.what);
    }
}

/// A tile that a device computes; recorded when it is dropped.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Flight {
    profile: Profile,
    device: String,
    track: u32,
    start: Instant,
    what: What,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let end = Instant::now();
        self.what.log(end.saturating_duration_since(self.start));
        let shared = &self.profile.0;
        let mut state = shared.state();
        state.record(shared.start, self.track, self.start, end, &self.what);
        let lanes = state.lanes.get_mut(&self.device).into_iter().flatten();
        lanes.filter(|(track, _)| *track == self.track).for_each(|(_, free)| *free = true);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self) -> io::Result<()> {
        let (sums, closed) = {
            let mut state = self.state();
            (state.sums.take(), state.finish())
        };
        if let Some(sums) = sums {
            sums.log();
        }
        closed
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // of a run that failed, whose own error counts
        let _ = self.finish();
    }
}

impl State {
    /// The calling thread's track.
    fn thread(&mut self) -> u32 {
        let current = thread::current();
        if let Some(&track) = self.threads.get(&current.id()) {
            return track;
        }
        let name = match (current.name(), rayon::current_thread_index()) {
            (Some(name), _) => name.to_owned(),
            (None, Some(index)) => format!("worker {index}"),
            (None, None) => "caller".to_owned(),
        };
        let track = self.track(&name);
        self.threads.insert(current.id(), track);
        track
    }

    /// A track of a device that no tile occupies.
    fn lane(&mut self, device: &str) -> u32 {
        let lanes = self.lanes.entry(device.to_owned()).or_default();
        if let Some((track, free)) = lanes.iter_mut().find(|(_, free)| *free) {
            *free = false;
            return *track;
        }
        let name = format!("{device}, tile {} in flight", lanes.len() + 1);
        let track = self.track(&name);
        self.lanes.entry(device.to_owned()).or_default().push((track, false));
        track
    }

    fn track(&mut self, name: &str) -> u32 {
        self.tracks += 1;
        let (pid, tid) = (1, self.tracks);
        let name = json!({"name": "thread_name", "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}});
        let order = json!({"name": "thread_sort_index", "ph": "M", "pid": pid, "tid": tid, "args": {"sort_index": tid}});
        self.put(",\n", &name);
        self.put(",\n", &order);
        tid
    }

    fn record(&mut self, zero: Instant, track: u32, start: Instant, end: Instant, what: &What) {
        if let Some(sums) = &mut self.sums {
            sums.add(what.stage, end.saturating_duration_since(start), what.bytes);
        }
        if self.file.is_none() {
            return;
        }
        // microseconds, as the format has them; nanoseconds behind the point
        let micros = |t: Instant| t.saturating_duration_since(zero).as_nanos() as f64 / 1e3;
        let (ts, dur) = (micros(start), end.saturating_duration_since(start).as_nanos() as f64 / 1e3);
        let category = what.stage.name();
        let name = if what.kernels.is_empty() { category } else { &what.kernels };
        let mut args = serde_json::Map::new();
        if !what.tensor.is_empty() {
            args.insert("tensor".into(), what.tensor.as_ref().into());
        }
        if what.bytes > 0 {
            args.insert("bytes".into(), what.bytes.into());
        }
        let event = json!({"name": name, "cat": category, "ph": "X", "ts": ts, "dur": dur, "pid": 1, "tid": track, "args": args});
        self.put(",\n", &event);
    }

    fn put(&mut self, before: &str, event: &Value) {
        let Some(file) = &mut self.file else { return };
        if let Err(e) = write!(file, "{before}{event}") {
            self.failed.get_or_insert(e);
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        let Some(mut file) = self.file.take() else { return Ok(()) };
        match self.failed.take() {
            Some(e) => Err(e),
            None => file.write_all(b"\n]\n").and_then(|()| file.flush()),
        }
    }
}
