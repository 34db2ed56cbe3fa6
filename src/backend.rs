//! Backends: machines that run the kernels over tiles. They know nothing of schemes or files.

use crate::{
    error::{Error, Result},
    kernels::{Binding, Kernel, Lengths, TileBuffers, TileParams},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::mpsc,
};

/// One upload: weights (or codes), and the kernels to run over them.
#[derive(Debug, Clone)]
pub struct Tile {
    /// The caller's own number for it.
    pub tag: u64,
    /// What it is.
    pub params: TileParams,
    /// Bytes that the caller fills in: the weights as stored, or packed codes.
    pub input_bytes: usize,
    /// The kernels, in order.
    pub kernels: Vec<&'static Kernel>,
    /// Words that buffers start with; ranges and counts otherwise start as zeros.
    pub preload: Vec<(Binding, Vec<u32>)>,
    /// The buffers to hand back.
    pub wants: &'static [Binding],
}

impl Tile {
    /// Lengths of all buffers.
    pub fn lengths(&self) -> Lengths {
        Lengths::new(&self.params, &self.kernels)
    }
}

/// The buffers that a tile wanted back.
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

/// How many times each kernel was dispatched.
pub type Dispatches = BTreeMap<&'static str, u64>;

/// Fills a tile's input; it gets exactly [`Tile::input_bytes`] bytes.
pub type Fill<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<()>;
/// Takes a finished tile.
pub type Take<'a> = &'a mut dyn FnMut(Tile, &Results) -> Result<()>;

/// Runs tiles, several at a time, and hands them back in the order they came.
pub trait Backend {
    /// What the user is told: "CPU, 8 threads" or the adapter's name and driver.
    fn describe(&self) -> String;
    /// Bytes of weights a tile should have.
    fn tile_bytes(&self) -> usize;
    /// Tiles that may be in flight.
    fn depth(&self) -> usize;
    /// Bytes that one tile in flight occupies, for buffers of these lengths.
    fn bytes_per_tile(&self, lengths: &Lengths) -> u64;
    /// Largest buffer that a tile may have, in bytes.
    fn max_buffer_bytes(&self) -> u64;
    /// Starts a tile. Fails if [`Backend::depth`] tiles are in flight.
    fn submit(&mut self, tile: Tile, fill: Fill) -> Result<()>;
    /// Waits for the oldest tile and hands it over; false if there is none.
    fn collect(&mut self, take: Take) -> Result<bool>;
    /// Tiles in flight.
    fn in_flight(&self) -> usize;
    /// What was dispatched so far.
    fn dispatches(&self) -> Dispatches;
}

/// Runs the Rust twins, a tile a task, on all cores.
pub struct CpuBackend {
    threads: usize,
    spare: Vec<TileBuffers>,
    running: VecDeque<mpsc::Receiver<(Tile, TileBuffers)>>,
    dispatches: Dispatches,
}

/// Small enough that a tile's weights and codes stay in a core's cache between the steps.
const CPU_TILE_BYTES: usize = 512 << 10;

impl CpuBackend {
    /// On all cores (RAYON_NUM_THREADS limits them).
    pub fn new() -> Self {
        CpuBackend {
            threads: rayon::current_num_threads(),
            spare: Vec::new(),
            running: VecDeque::new(),
            dispatches: Dispatches::new(),
        }
    }
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs a tile's kernels on the calling thread. `buffers` have the tile's lengths, and its input.
pub fn run_on_cpu(tile: &Tile, buffers: &mut TileBuffers) {
    for (binding, words) in &tile.preload {
        buffers.words_mut(*binding)[..words.len()].copy_from_slice(words);
    }
    for kernel in &tile.kernels {
        (kernel.cpu)(&tile.params, buffers);
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

    fn bytes_per_tile(&self, lengths: &Lengths) -> u64 {
        lengths.bytes()
    }

    fn max_buffer_bytes(&self) -> u64 {
        1 << 30
    }

    fn submit(&mut self, tile: Tile, fill: Fill) -> Result<()> {
        let mut buffers = self.spare.pop().unwrap_or_default();
        buffers.resize(&tile.lengths());
        fill(&mut bytemuck::cast_slice_mut(&mut buffers.input)[..tile.input_bytes])?;
        for kernel in &tile.kernels {
            *self.dispatches.entry(kernel.name).or_default() += 1;
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        self.running.push_back(receiver);
        rayon::spawn(move || {
            run_on_cpu(&tile, &mut buffers);
            let _ = sender.send((tile, buffers)); // nobody waits any more after an error elsewhere
        });
        Ok(())
    }

    fn collect(&mut self, take: Take) -> Result<bool> {
        let Some(receiver) = self.running.pop_front() else { return Ok(false) };
        let (tile, buffers) =
            receiver.recv().map_err(|_| Error::Device("a worker thread of the CPU backend failed".into()))?;
        let mut results = Results::default();
        for &binding in tile.wants {
            results.set(binding, buffers.words(binding));
        }
        take(tile, &results)?;
        self.spare.push(buffers);
        Ok(true)
    }

    fn in_flight(&self) -> usize {
        self.running.len()
    }

    fn dispatches(&self) -> Dispatches {
        self.dispatches.clone()
    }
}
