//! Proof that an adapter computes what the CPU computes: all of the harness, or before a job the short cases that the
//! job's own kernels can run.

use super::{GpuBackend, ties};
use crate::{
    backend::{Step, Steps, Tile},
    error::{Error, Result},
    kernels::cases::{self, Case, Outcome},
};
use std::sync::atomic::Ordering;

impl GpuBackend {
    /// Runs the harness of twins on this adapter; `short` for the form of which every job runs a part first.
    pub fn check(&mut self, short: bool) -> Result<Outcome> {
        self.compare(&cases::cases(short))
    }

    /// Compares these cases with the CPU, which does not count as work.
    fn compare(&mut self, cases: &[Case]) -> Result<Outcome> {
        let before = (self.dispatches.clone(), self.verified.take());
        let outcome = cases::compare(self, cases);
        (self.dispatches, self.verified) = before;
        self.pipelines.keep();
        outcome
    }

    /// [`crate::backend::Backend::verify`].
    pub(super) fn prove(&mut self, steps: &Steps) -> Result<()> {
        if self.options.skip_check {
            return Ok(());
        }
        let known = self.verified.clone().unwrap_or_default();
        let all: Steps = known.union(steps).copied().collect();
        let new: Steps = steps.difference(&known).copied().collect();
        if !new.is_empty() {
            let outcome = self.compare(&covering(&new, &all)?)?;
            if let Some(difference) = outcome.differences.first() {
                return Err(Error::Device(format!(
                    "{} computes something else than the CPU in {} of {} checks ({difference}); \
                     --device cpu makes the right bytes, monoquant devices --check lists all differences",
                    self.facts.name,
                    outcome.differences.len(),
                    outcome.cases
                )));
            }
        }
        self.verified = Some(all);
        Ok(())
    }

    /// For tests of what follows the loss of a device.
    pub(super) fn lose_if_told(&self) {
        if self.options.lose_after == Some(self.submitted) && !self.lost.load(Ordering::Relaxed) {
            self.device.destroy();
        }
    }

    /// Refuses a tile with a step that was not proven, once any was.
    pub(super) fn proven(&self, tile: &Tile) -> Result<()> {
        let Some(verified) = &self.verified else { return Ok(()) };
        match tile.steps().find(|step| !verified.contains(step)) {
            None => Ok(()),
            Some((kernel, _)) => Err(Error::Device(format!(
                "{}: internal error: the kernel {kernel} was not compared with the CPU's before the job",
                self.facts.name
            ))),
        }
    }
}

/// Cases that together run every step of `new`, made of steps of `all` wherever such cases do: what a job does not use
/// need not be compiled for it.
pub(super) fn covering(new: &Steps, all: &Steps) -> Result<Vec<Case>> {
    let runs = |case: &Case, step: &Step| case.tile.steps().any(|s| s == *step);
    let (mut chosen, others): (Vec<Case>, Vec<Case>) = cases::cases(true)
        .into_iter()
        .chain(ties::cases())
        .filter(|case| case.tile.steps().any(|step| new.contains(&step)))
        .partition(|case| case.tile.steps().all(|step| all.contains(&step)));
    let missing: Steps =
        new.iter().filter(|step| !chosen.iter().any(|case| runs(case, step))).copied().collect();
    chosen.extend(others.into_iter().filter(|case| missing.iter().any(|step| runs(case, step))));
    match missing.iter().find(|step| !chosen.iter().any(|case| runs(case, step))) {
        None => Ok(chosen),
        Some((kernel, dtype)) => Err(Error::Device(format!(
            "internal error: no case compares the kernel {kernel} for dtype {dtype} with the CPU's; --device cpu needs none"
        ))),
    }
}

/// Every step that short cases run.
pub fn every_step() -> Steps {
    cases::cases(true).iter().flat_map(|case| case.tile.steps()).collect()
}
