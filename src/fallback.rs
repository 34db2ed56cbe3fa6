//! A machine that may be lost: the CPU then computes what is left, and every tile that was lost with it.

use crate::{
    backend::{Backend, CpuBackend, Dispatches, Fill, Steps, Take, Tile},
    error::{Error, Result},
    kernels::Lengths,
    profile::Profile,
};
use std::{collections::VecDeque, time::Instant};

/// Hands everything on to a machine as long as it works, and then to the CPU, which makes the same bytes.
///
/// The tiles that are in flight when the machine fails come back as [`Backend::lost_tiles`]: who submitted them still has
/// their input.
pub struct Fallback {
    backend: Box<dyn Backend>,
    /// Tags of the tiles in flight, oldest first.
    flights: VecDeque<u64>,
    again: Vec<u64>,
    /// Tiles that came back from the machine.
    finished: u64,
    /// What happened to the machine, and what it had dispatched.
    loss: Option<(String, Dispatches)>,
    profile: Option<Profile>,
}

impl Fallback {
    /// With this machine to begin with.
    pub fn new(backend: Box<dyn Backend>) -> Self {
        Fallback {
            backend,
            flights: VecDeque::new(),
            again: Vec::new(),
            finished: 0,
            loss: None,
            profile: None,
        }
    }

    /// Goes on with the CPU if the machine failed, else hands the error back.
    fn fall_back(&mut self, error: Error) -> Result<()> {
        let (Error::Device(why), None) = (&error, &self.loss) else { return Err(error) };
        // what the driver says of a loss, rather than what it led to
        let why = self.backend.loss().unwrap_or_else(|| why.clone());
        let message = format!(
            "{} failed after {} tiles ({}); the CPU computed the rest, with the same bytes",
            self.backend.describe(),
            self.finished,
            why.split_whitespace().collect::<Vec<_>>().join(" ")
        );
        self.loss = Some((message, self.backend.dispatches()));
        self.again.extend(self.flights.drain(..));
        self.backend = Box::new(CpuBackend::new());
        self.backend.set_profile(self.profile.clone());
        Ok(())
    }
}

impl Backend for Fallback {
    fn describe(&self) -> String {
        self.backend.describe()
    }

    fn tile_bytes(&self) -> usize {
        self.backend.tile_bytes()
    }

    fn depth(&self) -> usize {
        self.backend.depth()
    }

    fn bytes_per_tile(&self, lengths: &Lengths, passes: usize) -> u64 {
        self.backend.bytes_per_tile(lengths, passes)
    }

    fn max_buffer_bytes(&self) -> u64 {
        self.backend.max_buffer_bytes()
    }

    /// A machine that computes something else than the CPU is refused; one that is lost meanwhile is replaced.
    fn verify(&mut self, steps: &Steps) -> Result<()> {
        match self.backend.verify(steps) {
            Err(e) if self.backend.loss().is_some() => self.fall_back(e),
            verified => verified,
        }
    }

    fn has_room(&mut self) -> bool {
        self.backend.has_room()
    }

    fn submit(&mut self, tile: Tile, fill: Fill) -> Result<()> {
        let tag = tile.tag;
        let mut filled = true;
        let submitted = self.backend.submit(tile, &mut |bytes| fill(bytes).inspect_err(|_| filled = false));
        match submitted {
            Ok(()) => self.flights.push_back(tag),
            // of the input, not of the machine
            Err(e) if !filled => return Err(e),
            Err(e) => {
                self.fall_back(e)?;
                self.again.push(tag);
            }
        }
        Ok(())
    }

    fn collect(&mut self, take: Take) -> Result<bool> {
        let mut taken = false;
        let flights = &mut self.flights;
        let collected = self.backend.collect(&mut |tile, results| {
            taken = true;
            flights.pop_front();
            take(tile, results)
        });
        self.finished += u64::from(taken && self.loss.is_none());
        match collected {
            // of who takes the results, not of the machine
            Err(e) if !taken => self.fall_back(e).map(|()| true),
            collected => collected,
        }
    }

    fn finished(&mut self) -> Option<Instant> {
        self.backend.finished()
    }

    fn in_flight(&self) -> usize {
        self.backend.in_flight()
    }

    fn dispatches(&self) -> Dispatches {
        let mut sum = self.backend.dispatches();
        for (kernel, count) in self.loss.iter().flat_map(|(_, before)| before) {
            *sum.entry(kernel).or_default() += count;
        }
        sum
    }

    fn set_profile(&mut self, profile: Option<Profile>) {
        self.profile.clone_from(&profile);
        self.backend.set_profile(profile);
    }

    fn lost_tiles(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.again)
    }

    fn loss(&self) -> Option<String> {
        self.loss.as_ref().map(|(message, _)| message.clone())
    }
}
