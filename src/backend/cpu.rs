//! The backend of the CPU: the kernels' Rust twins, on all cores.

use super::{Backend, Dispatches, Fill, Pass, Results, Steps, Take, Tile};
use crate::{
    error::{Error, Result},
    kernels::{Lengths, TileBuffers},
    profile::Profile,
};
use std::{collections::VecDeque, sync::mpsc, time::Instant};

/// Runs the Rust twins, a tile a task, or several small ones, on all cores.
pub struct CpuBackend {
    threads: usize,
    spare: Vec<TileBuffers>,
    /// Tiles that wait for others, to go to a core together.
    waiting: Vec<Filled>,
    /// Tasks that cores have, oldest first.
    running: VecDeque<mpsc::Receiver<Vec<Finished>>>,
    /// Tiles that are older than those, and finished.
    finished: VecDeque<Finished>,
    /// Tiles in flight, and their bytes of input.
    in_flight: (usize, usize),
    dispatches: Dispatches,
    profile: Option<Profile>,
}

/// A tile and its buffers.
type Filled = (Tile, Vec<TileBuffers>);
/// A tile, its buffers, and when they were ready.
type Finished = (Tile, Vec<TileBuffers>, Instant);

/// Small enough that a tile's weights and codes stay in a core's cache between the steps.
const CPU_TILE_BYTES: usize = 512 << 10;

/// Most tiles in flight, where they are small.
const SMALL_TILES: usize = 64;
/// Bytes of input that are worth a task: handing it over and back costs a small part of what it computes.
const TASK_BYTES: usize = CPU_TILE_BYTES / 2;

impl CpuBackend {
    /// On all cores (RAYON_NUM_THREADS limits them).
    pub fn new() -> Self {
        CpuBackend {
            threads: rayon::current_num_threads(),
            spare: Vec::new(),
            waiting: Vec::new(),
            running: VecDeque::new(),
            finished: VecDeque::new(),
            in_flight: (0, 0),
            dispatches: Dispatches::new(),
            profile: None,
        }
    }

    /// Hands the tiles that wait to a core, as one task.
    fn start(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        self.running.push_back(receiver);
        let (tiles, profile) = (std::mem::take(&mut self.waiting), self.profile.clone());
        rayon::spawn(move || {
            let run = |(tile, mut buffers): Filled| {
                let names = tile.kernels().map(|kernel| kernel.name);
                let span = profile.as_ref().map(|profile| profile.kernels(tile.tag, names, tile.input_bytes));
                run_passes(&tile, &mut buffers);
                drop(span);
                (tile, buffers, Instant::now())
            };
            let _ = sender.send(tiles.into_iter().map(run).collect()); // nobody waits any more after an error elsewhere
        });
    }

    /// Takes up the oldest task, if it is finished. What waits is started if not, as nobody adds to it now.
    fn look(&mut self) -> std::result::Result<(), mpsc::TryRecvError> {
        let found = self.running.front().map_or(Err(mpsc::TryRecvError::Empty), |oldest| oldest.try_recv());
        match found {
            Ok(tiles) => {
                self.running.pop_front();
                self.finished.extend(tiles);
                Ok(())
            }
            Err(e) => {
                self.start();
                Err(e)
            }
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
        let (tiles, bytes) = self.in_flight;
        tiles < self.depth() || (tiles < SMALL_TILES && bytes < self.depth() * CPU_TILE_BYTES)
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
        self.in_flight.0 += 1;
        self.in_flight.1 += tile.input_bytes;
        self.waiting.push((tile, buffers));
        let bytes: usize = self.waiting.iter().map(|(tile, _)| tile.input_bytes).sum();
        // where nothing runs, a core is idle
        if bytes >= TASK_BYTES || self.running.is_empty() {
            self.start();
        }
        Ok(())
    }

    fn collect(&mut self, take: Take) -> Result<bool> {
        if self.finished.is_empty() && self.look().is_err() {
            let Some(oldest) = self.running.pop_front() else { return Ok(false) };
            let failed = |_| Error::Device("a worker thread of the CPU backend failed".into());
            self.finished.extend(oldest.recv().map_err(failed)?);
        }
        let Some((tile, buffers, _)) = self.finished.pop_front() else { return Ok(false) };
        self.in_flight.0 -= 1;
        self.in_flight.1 -= tile.input_bytes;
        let mut all = Vec::with_capacity(tile.passes.len());
        for (pass, buffers) in tile.passes.iter().zip(&buffers) {
            let mut results = Results::default();
            for &binding in pass.wants {
                results.set(binding, buffers.words(binding));
            }
            all.push(results);
        }
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
        // collect says why a task was lost
        if self.finished.is_empty() && self.look() == Err(mpsc::TryRecvError::Disconnected) {
            return Some(Instant::now());
        }
        self.finished.front().map(|(.., when)| *when)
    }

    fn in_flight(&self) -> usize {
        self.in_flight.0
    }

    fn dispatches(&self) -> Dispatches {
        self.dispatches.clone()
    }

    fn set_profile(&mut self, profile: Option<Profile>) {
        self.profile = profile;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Binding, TileParams, minmax};

    /// A tile whose one range is found; its largest weight is its tag.
    fn submit(backend: &mut CpuBackend, tag: u64, elements: u32) {
        let params =
            TileParams { channel_len: elements, ..Default::default() }.with_groups(elements, elements);
        let kernels = vec![&minmax::KERNEL];
        let pass = Pass { params, kernels, preload: vec![], wants: &[Binding::Ranges] };
        let fill = &mut |bytes: &mut [u8]| {
            bytes.fill(0);
            bytes[..4].copy_from_slice(&(tag as f32).to_le_bytes());
            Ok(())
        };
        backend.submit(Tile::one(tag, 4 * elements as usize, pass), fill).unwrap();
    }

    fn collect(backend: &mut CpuBackend) -> Option<u64> {
        let mut found = None;
        backend
            .collect(&mut |tile, results| {
                let most = results[0].get(Binding::Ranges)[1];
                assert_eq!(crate::kernels::arithmetic::unordered(most), (tile.tag as f32).to_bits());
                found = Some(tile.tag);
                Ok(())
            })
            .unwrap();
        found
    }

    #[test]
    fn small_tiles_share_tasks_and_come_back_in_order() {
        let mut backend = CpuBackend::new();
        let mut count = 0;
        while backend.has_room() {
            count += 1;
            submit(&mut backend, count, 1 << 10);
        }
        assert_eq!(backend.in_flight(), count as usize);
        assert!(backend.in_flight() >= SMALL_TILES && backend.running.len() < SMALL_TILES / 4);
        // those that wait for others do not wait for ever, nor do large ones wait
        for tag in 1..=count {
            assert_eq!(collect(&mut backend), Some(tag));
        }
        assert_eq!((collect(&mut backend), backend.in_flight()), (None, 0));
        let whole = (TASK_BYTES / 4) as u32;
        (0..3).for_each(|tag| submit(&mut backend, tag, whole));
        assert_eq!(backend.running.len(), 3);
        while backend.finished().is_none() {
            std::thread::yield_now();
        }
        assert_eq!(collect(&mut backend), Some(0));
    }
}
