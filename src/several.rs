//! Several machines as one: each tile goes to one that has room, and all come back in the order they were submitted.
//!
//! Results that are ready before an older tile are copied out and held, so that a machine goes on while a slower one
//! computes. One that is much slower than the fastest gets as few tiles as the held results can wait for.

use crate::{
    backend::{Backend, Dispatches, Fill, Pass, Results, Steps, Take, Tile},
    error::{Error, Result},
    kernels::{Binding, Lengths},
    profile::Profile,
};
use std::{
    collections::VecDeque,
    thread,
    time::{Duration, Instant},
};

/// Shares tiles among machines.
pub struct Several {
    machines: Vec<Machine>,
    /// The machine of every tile in flight, oldest first.
    order: VecDeque<usize>,
}

struct Machine {
    backend: Box<dyn Backend>,
    /// Start and bytes of the tiles that it computes.
    running: VecDeque<(Instant, usize)>,
    /// Results that wait for older tiles of other machines.
    held: VecDeque<Held>,
    /// When it finished a tile last, and how long that took.
    last: Option<(Instant, Duration)>,
    /// Seconds a byte of input, lately; none before its first tile.
    pace: Option<f64>,
}

/// A finished tile, and the words that its passes wanted.
struct Held(Tile, Vec<Vec<(Binding, Vec<u32>)>>);

/// Between two looks at machines that are all at work: far below the time of a tile.
const PAUSE: Duration = Duration::from_micros(100);
/// What the newest tile adds to a machine's pace.
const WEIGHT: f64 = 0.25;
/// A machine that is too slow is tried again after so many times its last tile's time: the others wait for it during at
/// most this part of a run.
const REST: u32 = 20;

impl Several {
    /// These machines as one; at least one.
    pub fn new(backends: Vec<Box<dyn Backend>>) -> Self {
        let machine = |backend| Machine {
            backend,
            running: VecDeque::new(),
            held: VecDeque::new(),
            last: None,
            pace: None,
        };
        Several { machines: backends.into_iter().map(machine).collect(), order: VecDeque::new() }
    }

    /// What each machine dispatched so far.
    pub fn shares(&self) -> Vec<Dispatches> {
        self.machines.iter().map(|m| m.backend.dispatches()).collect()
    }

    /// Tiles that all machines together compute at a time. As many results again may be held.
    fn running(&self) -> usize {
        self.machines.iter().map(|m| m.backend.depth()).sum()
    }

    /// The machine that takes the next tile, the least loaded first, if any has room.
    fn next(&self) -> Option<usize> {
        let fastest = self.machines.iter().filter_map(|m| m.pace).fold(f64::INFINITY, f64::min);
        let window = self.depth() as f64 * fastest;
        let load = |m: &Machine| m.running.len() as f64 / m.backend.depth() as f64;
        let free = (0..self.machines.len()).filter(|&i| self.machines[i].has_room(window));
        free.min_by(|&a, &b| load(&self.machines[a]).total_cmp(&load(&self.machines[b])))
    }

    /// The first machine whose oldest tile is finished. Looks at all of them, as GPUs note only then what is done.
    fn finished(&mut self) -> Option<usize> {
        let finished: Vec<bool> = self.machines.iter_mut().map(|m| m.backend.finished().is_some()).collect();
        finished.iter().position(|&f| f)
    }
}

impl Machine {
    /// Whether it should take another tile. Not if the fastest machine would fill the whole window, seconds a byte, before
    /// this one was done with it.
    fn has_room(&self, window: f64) -> bool {
        let queue = self.running.len();
        let in_time = self.pace.is_none_or(|pace| (queue + 1) as f64 * pace <= window);
        let rested = || queue == 0 && self.last.is_some_and(|(when, took)| when.elapsed() >= REST * took);
        queue < self.backend.depth() && (in_time || rested())
    }

    /// Collects its oldest tile, and notes how long it took.
    fn collect(&mut self, take: Take) -> Result<bool> {
        let when = self.backend.finished().unwrap_or_else(Instant::now);
        if let Some((start, bytes)) = self.running.pop_front() {
            let start = self.last.map_or(start, |(last, _)| start.max(last));
            let took = when.saturating_duration_since(start);
            let pace = took.as_secs_f64() / bytes.max(1) as f64;
            self.pace = Some(self.pace.map_or(pace, |before| before + WEIGHT * (pace - before)));
            self.last = Some((when, took));
        }
        self.backend.collect(take)
    }

    /// Copies the results of its oldest tile, which makes room for another.
    fn hold(&mut self) -> Result<()> {
        let mut held = None;
        self.collect(&mut |tile, results| {
            let copy = |(pass, results): (&Pass, &Results)| {
                pass.wants.iter().map(|&binding| (binding, results.get(binding).to_vec())).collect()
            };
            let words = tile.passes.iter().zip(results).map(copy).collect();
            held = Some(Held(tile, words));
            Ok(())
        })?;
        self.held.extend(held);
        Ok(())
    }
}

impl Held {
    fn hand_over(self, take: Take) -> Result<()> {
        let Held(tile, passes) = self;
        let mut results = vec![Results::default(); passes.len()];
        for (results, wanted) in results.iter_mut().zip(&passes) {
            wanted.iter().for_each(|(binding, words)| results.set(*binding, words));
        }
        take(tile, &results)
    }
}

impl Backend for Several {
    fn describe(&self) -> String {
        self.machines.iter().map(|m| m.backend.describe()).collect::<Vec<_>>().join(" + ")
    }

    /// The smallest, which all can take.
    fn tile_bytes(&self) -> usize {
        self.machines.iter().map(|m| m.backend.tile_bytes()).min().unwrap_or(1)
    }

    fn depth(&self) -> usize {
        2 * self.running()
    }

    fn set_profile(&mut self, profile: Option<Profile>) {
        self.machines.iter_mut().for_each(|m| m.backend.set_profile(profile.clone()));
    }

    /// A mean: tiles that are held occupy only what they return.
    fn bytes_per_tile(&self, lengths: &Lengths, passes: usize) -> u64 {
        let of_machine = |m: &Machine| m.backend.depth() as u64 * m.backend.bytes_per_tile(lengths, passes);
        let running: u64 = self.machines.iter().map(of_machine).sum();
        let returned = Binding::ALL.iter().filter(|b| !b.read_only()).map(|&b| 4 * lengths.of(b) as u64);
        let held = self.running() as u64 * passes as u64 * returned.sum::<u64>();
        (running + held).div_ceil(self.depth() as u64)
    }

    fn max_buffer_bytes(&self) -> u64 {
        self.machines.iter().map(|m| m.backend.max_buffer_bytes()).min().unwrap_or(0)
    }

    fn verify(&mut self, steps: &Steps) -> Result<()> {
        self.machines.iter_mut().try_for_each(|m| m.backend.verify(steps))
    }

    /// Waits until a machine has room, or the oldest tile is finished: its results are then handed over in place, not
    /// copied.
    fn has_room(&mut self) -> bool {
        while self.in_flight() < self.depth() {
            if self.next().is_some() {
                return true;
            }
            match (self.finished(), self.order.front()) {
                (_, Some(&oldest)) if self.machines[oldest].backend.finished().is_some() => return false,
                (Some(_), _) => return true,
                (None, _) => thread::sleep(PAUSE),
            }
        }
        false
    }

    fn submit(&mut self, tile: Tile, fill: Fill) -> Result<()> {
        if self.in_flight() == self.depth() {
            return Err(Error::Device("internal error: more tiles than the devices take".into()));
        }
        let machine = loop {
            match (self.next(), self.finished()) {
                (Some(machine), _) => break machine,
                (None, Some(finished)) => self.machines[finished].hold()?,
                (None, None) => thread::sleep(PAUSE),
            }
        };
        let bytes = tile.input_bytes;
        let Machine { backend, running, .. } = &mut self.machines[machine];
        backend.submit(tile, fill)?;
        running.push_back((Instant::now(), bytes));
        self.order.push_back(machine);
        Ok(())
    }

    fn collect(&mut self, take: Take) -> Result<bool> {
        let Some(oldest) = self.order.pop_front() else { return Ok(false) };
        if let Some(held) = self.machines[oldest].held.pop_front() {
            held.hand_over(take)?;
            return Ok(true);
        }
        // looking at all of them while one waits keeps the others' times right
        while self.machines[oldest].backend.finished().is_none() {
            self.finished();
            thread::sleep(PAUSE);
        }
        self.machines[oldest].collect(take)
    }

    fn finished(&mut self) -> Option<Instant> {
        let oldest = &mut self.machines[*self.order.front()?];
        if oldest.held.is_empty() { oldest.backend.finished() } else { oldest.last.map(|(when, _)| when) }
    }

    fn in_flight(&self) -> usize {
        self.order.len()
    }

    fn loss(&self) -> Option<String> {
        self.machines.iter().find_map(|m| m.backend.loss())
    }

    fn dispatches(&self) -> Dispatches {
        let mut sum = Dispatches::new();
        for (kernel, count) in self.shares().into_iter().flatten() {
            *sum.entry(kernel).or_default() += count;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::CpuBackend;

    #[test]
    fn a_machine_that_is_much_slower_gets_few_tiles_or_none() {
        let machine = || Box::new(CpuBackend::new()) as Box<dyn Backend>;
        let mut several = Several::new(vec![machine(), machine()]);
        let depth = several.machines[0].backend.depth();
        let now = Instant::now();
        // tiles that the second may have at a time, when it is so many times slower and just finished one
        let mut at_most = |times: f64| {
            let last = Some((now, Duration::from_secs(1000)));
            let [first, second] = &mut several.machines[..] else { unreachable!() };
            (first.pace, second.pace, second.last) = (Some(1e-9), Some(times * 1e-9), last);
            // the first is always the more loaded one
            first.running = vec![(now, 1); depth - 1].into();
            second.running.clear();
            let mut taken = 0;
            while several.next() == Some(1) {
                several.machines[1].running.push_back((now, 1));
                taken += 1;
            }
            assert!(taken == depth || several.next() == Some(0), "the fastest has room");
            taken
        };
        assert_eq!(at_most(1.0), depth - 1);
        assert_eq!(at_most(depth as f64), 4);
        assert_eq!(at_most(4.0 * depth as f64), 1);
        assert_eq!(at_most(4.1 * depth as f64), 0);
        several.machines[1].last = Some((now, Duration::ZERO));
        assert_eq!(several.next(), Some(1), "it is tried again");
    }
}
