//! Backends: machines that run the kernels over tiles. They know nothing of schemes or files.

mod cpu;

pub(crate) use cpu::run_passes;
pub use cpu::{CpuBackend, run_on_cpu};

use crate::{
    error::Result,
    kernels::{Binding, Kernel, Lengths, TileParams},
    profile::Profile,
};
use std::{
    collections::{BTreeMap, BTreeSet},
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
