//! Backends: machines that run the kernels over tiles. They know nothing of schemes or files.

use crate::{
    error::{Error, Result},
    kernels::{Binding, Kernel, Lengths, TileBuffers, TileParams},
    profile::Profile,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::mpsc,
    time::Instant,
};

/// One upload: weights (or codes), and what is computed from them, pass by pass.
#[derive(Debug, Clone)]
pub struct Tile {
    /// The caller's own number for it.
    pub tag: u64,
    /// Bytes that the caller fills in: the weights as stored, or packed codes.
    pub input_bytes: usize,
    /// The passes: one a grid that the weights are coded on. They share nothing but the input.
    pub passes: Vec<Pass>,
}

/// Kernels that run one after another over a tile.
#[derive(Debug, Clone)]
pub struct Pass {
    /// What the tile is, and how it is computed.
    pub params: TileParams,
    /// The kernels, in order.
    pub kernels: Vec<&'static Kernel>,
    /// Words that buffers start with; ranges and counts otherwise start as zeros.
    pub preload: Vec<(Binding, Vec<u32>)>,
    /// The buffers to hand back.
    pub wants: &'static [Binding],
}

impl Tile {
    /// A tile of one pass.
    pub fn one(tag: u64, input_bytes: usize, pass: Pass) -> Self {
        Tile { tag, input_bytes, passes: vec![pass] }
    }

    /// Lengths of buffers that hold any pass.
    pub fn lengths(&self) -> Lengths {
        self.passes.iter().fold(Lengths::default(), |lengths, pass| lengths.max(pass.lengths()))
    }

    /// The kernels of all passes.
    pub fn kernels(&self) -> impl Iterator<Item = &'static Kernel> {
        self.passes.iter().flat_map(|pass| &pass.kernels).copied()
    }

    /// The same, each with the dtype that it is compiled for.
    pub fn steps(&self) -> impl Iterator<Item = Step> {
        self.passes.iter().flat_map(|pass| pass.kernels.iter().map(|k| (k.name, pass.params.input_dtype)))
    }
}

impl Pass {
    /// Lengths of all buffers.
    pub fn lengths(&self) -> Lengths {
        Lengths::new(&self.params, &self.kernels)
    }
}

/// The buffers that a pass wanted back.
#[derive(Debug, Default, Clone, Copy)]
pub struct Results<'a> {
    words: [&'a [u32]; 8],
}

impl<'a> Results<'a> {
    /// Sets one buffer.
    pub fn set(&mut self, binding: Binding, words: &'a [u32]) {
        self.words[binding as usize - 1] = words;
    }

    /// One buffer; empty if it was not wanted.
    pub fn get(&self, binding: Binding) -> &'a [u32] {
        self.words[binding as usize - 1]
    }
}

/// A kernel's name, and the dtype of its input ([`TileParams::input_dtype`]): what a GPU compiles as one.
pub type Step = (&'static str, u32);
/// Kernels that a run needs.
pub type Steps = BTreeSet<Step>;

/// How many times each kernel was dispatched.
pub type Dispatches = BTreeMap<&'static str, u64>;

/// Fills a tile's input; it gets exactly [`Tile::input_bytes`] bytes.
pub type Fill<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<()>;
/// Takes a finished tile, and the results of its passes.
pub type Take<'a> = &'a mut dyn FnMut(Tile, &[Results]) -> Result<()>;

/// Runs tiles, several at a time, and hands them back in the order they came.
pub trait Backend {
    /// What the user is told: "CPU, 8 threads" or the adapter's name and driver.
    fn describe(&self) -> String;
    /// Bytes of weights a tile should have.
    fn tile_bytes(&self) -> usize;
    /// Tiles that may be in flight.
    fn depth(&self) -> usize;
    /// Bytes that one tile in flight occupies, for buffers of these lengths and so many passes.
    fn bytes_per_tile(&self, lengths: &Lengths, passes: usize) -> u64;
    /// Largest buffer that a tile may have, in bytes.
    fn max_buffer_bytes(&self) -> u64;
    /// Proves that these steps make the same bytes as on the CPU, and takes no others from then on. Called with nothing
    /// in flight; steps that were proven before cost nothing.
    fn verify(&mut self, steps: &Steps) -> Result<()>;
    /// Whether another tile should be started before the oldest is collected.
    fn has_room(&mut self) -> bool {
        self.in_flight() < self.depth()
    }
    /// Starts a tile. Fails if [`Backend::depth`] tiles are in flight.
    fn submit(&mut self, tile: Tile, fill: Fill) -> Result<()>;
    /// Waits for the oldest tile and hands it over; false if there is none.
    fn collect(&mut self, take: Take) -> Result<bool>;
    /// When the oldest tile was finished; `None` if it was not yet, or there is none. Does not wait.
    fn finished(&mut self) -> Option<Instant>;
    /// Tiles in flight.
    fn in_flight(&self) -> usize;
    /// What was dispatched so far.
    fn dispatches(&self) -> Dispatches;
    /// Records what kernels do from now on, or nothing.
    fn set_profile(&mut self, profile: Option<Profile>);
    /// Tags of tiles that were in flight when the machine was lost, oldest first, each handed out once: they never come
    /// back, and are to be submitted again.
    fn lost_tiles(&mut self) -> Vec<u64> {
        Vec::new()
    }
    /// What happened to the machine, if it was lost.
    fn loss(&self) -> Option<String> {
        None
    }
}

/// Runs the Rust twins, a tile a task, on all cores.
pub struct CpuBackend {
    threads: usize,
    spare: Vec<TileBuffers>,
    running: VecDeque<mpsc::Receiver<Finished>>,
    /// The oldest tile, if it was found finished.
    first: Option<Finished>,
    /// Bytes of input in flight.
    bytes: usize,
    dispatches: Dispatches,
    profile: Option<Profile>,
}

/// A tile, its buffers, and when they were ready.
type Finished = (Tile, Vec<TileBuffers>, Instant);

/// Small enough that a tile's weights and codes stay in a core's cache between the steps.
const CPU_TILE_BYTES: usize = 512 << 10;

/// Most tiles in flight, where they are small.
const SMALL_TILES: usize = 64;

impl CpuBackend {
    /// On all cores (RAYON_NUM_THREADS limits them).
    pub fn new() -> Self {
        CpuBackend {
            threads: rayon::current_num_threads(),
            spare: Vec::new(),
            running: VecDeque::new(),
            first: None,
            bytes: 0,
            dispatches: Dispatches::new(),
            profile: None,
        }
    }
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs a pass on the calling thread. `buffers` have its lengths, and the tile's input.
pub fn run_on_cpu(pass: &Pass, buffers: &mut TileBuffers) {
    for (binding, words) in &pass.preload {
        buffers.words_mut(*binding)[..words.len()].copy_from_slice(words);
    }
    for kernel in &pass.kernels {
        (kernel.cpu)(&pass.params, buffers);
    }
}

/// Runs a tile's passes, which hand the input on.
pub(crate) fn run_passes(tile: &Tile, buffers: &mut [TileBuffers]) {
    for i in 0..tile.passes.len() {
        if i > 0 {
            buffers[i].input = std::mem::take(&mut buffers[i - 1].input);
        }
        run_on_cpu(&tile.passes[i], &mut buffers[i]);
    }
}

impl Backend for CpuBackend {
    fn describe(&self) -> String {
        format!("CPU, {} thread{}", self.threads, if self.threads == 1 { "" } else { "s" })
    }

    fn tile_bytes(&self) -> usize {
        CPU_TILE_BYTES
    }

    fn depth(&self) -> usize {
        2 * self.threads + 2
    }

    fn bytes_per_tile(&self, lengths: &Lengths, passes: usize) -> u64 {
        lengths.bytes() * passes as u64
    }

    fn max_buffer_bytes(&self) -> u64 {
        1 << 30
    }

    fn verify(&mut self, _steps: &Steps) -> Result<()> {
        Ok(()) // these are the twins that others are compared with
    }

    /// Small tiles wait in larger numbers: a worker is done with one before a thread can be woken for the next.
    fn has_room(&mut self) -> bool {
        let waiting = self.running.len();
        waiting < self.depth() || (waiting < SMALL_TILES && self.bytes < CPU_TILE_BYTES)
    }

    fn submit(&mut self, tile: Tile, fill: Fill) -> Result<()> {
        let mut buffers: Vec<TileBuffers> =
            tile.passes.iter().map(|_| self.spare.pop().unwrap_or_default()).collect();
        for (i, (pass, buffers)) in tile.passes.iter().zip(&mut buffers).enumerate() {
            // the first pass holds the input, which must suit every pass
            buffers.resize(&if i == 0 { tile.lengths() } else { pass.lengths() });
        }
        fill(&mut bytemuck::cast_slice_mut(&mut buffers[0].input)[..tile.input_bytes])?;
        for kernel in tile.kernels() {
            *self.dispatches.entry(kernel.name).or_default() += 1;
        }
        self.bytes += tile.input_bytes;
        let (sender, receiver) = mpsc::sync_channel(1);
        self.running.push_back(receiver);
        let profile = self.profile.clone();
        rayon::spawn(move || {
            let names = tile.kernels().map(|kernel| kernel.name);
            let span = profile.as_ref().map(|profile| profile.kernels(tile.tag, names, tile.input_bytes));
            run_passes(&tile, &mut buffers);
            drop(span);
            let _ = sender.send((tile, buffers, Instant::now())); // nobody waits any more after an error elsewhere
        });
        Ok(())
    }

    fn collect(&mut self, take: Take) -> Result<bool> {
        let Some(receiver) = self.running.pop_front() else { return Ok(false) };
        let finished = self.first.take().map_or_else(|| receiver.recv(), Ok);
        let (tile, buffers, _) =
            finished.map_err(|_| Error::Device("a worker thread of the CPU backend failed".into()))?;
        let mut all = Vec::with_capacity(tile.passes.len());
        for (pass, buffers) in tile.passes.iter().zip(&buffers) {
            let mut results = Results::default();
            for &binding in pass.wants {
                results.set(binding, buffers.words(binding));
            }
            all.push(results);
        }
        self.bytes -= tile.input_bytes;
        take(tile, &all)?;
        for buffers in buffers {
            // no more large ones than are in use at a time
            if self.spare.len() < self.depth() || buffers.bytes() <= CPU_TILE_BYTES / 4 {
                self.spare.push(buffers);
            }
        }
        Ok(true)
    }

    fn finished(&mut self) -> Option<Instant> {
        if self.first.is_none() {
            match self.running.front()?.try_recv() {
                Ok(finished) => self.first = Some(finished),
                Err(mpsc::TryRecvError::Empty) => return None,
                Err(mpsc::TryRecvError::Disconnected) => return Some(Instant::now()), // collect says why
            }
        }
        self.first.as_ref().map(|(.., when)| *when)
    }

    fn in_flight(&self) -> usize {
        self.running.len()
    }

    fn dispatches(&self) -> Dispatches {
        self.dispatches.clone()
    }

    fn set_profile(&mut self, profile: Option<Profile>) {
        self.profile = profile;
    }
}
