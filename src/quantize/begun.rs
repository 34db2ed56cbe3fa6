//! A run from its output's beginning to its end: anew, or from where another one stopped.

use super::{Prepared, Settings, companions::add_companions, job_bytes, jobs::Ledger, stream};
use crate::{
    device::Device,
    error::{Error, Result},
    profile::Stage,
    report::Report,
    stream::Finished,
    verify::verify,
    writer::{Destination, Formatted, Identity, Start, Writer},
};
use std::{fmt::Write, sync::atomic::AtomicBool};

/// An output that was begun: its place is taken, its files are made.
pub struct Begun<'a> {
    prepared: &'a Prepared,
    writer: Writer,
}

/// Takes the output's place, which no other run may have, and what an unfinished run has finished there.
pub fn begin<'a>(prepared: &'a Prepared, settings: &Settings) -> Result<Begun<'a>> {
    let Prepared { checkpoint, plan, destination, replace, .. } = prepared;
    let _creation = settings.profile.as_ref().map(|profile| profile.span(Stage::Create));
    checkpoint.stamps().check()?;
    let start = Start {
        replace: *replace,
        discard: settings.force,
        resume: settings.resume,
        identity: (plan.files.len() > 1).then(|| identity(prepared)),
        stamps: checkpoint.stamps().clone(),
    };
    let mut writer = Writer::start(destination, plan.files.clone(), start)?;
    // first, so that a file that cannot be read costs no work
    if matches!(destination, Destination::Directory(_))
        && let Err(e) = add_companions(checkpoint, plan, &mut writer)
    {
        return Err(writer.abandon(e));
    }
    Ok(Begun { prepared, writer })
}

impl Begun<'_> {
    /// What the user should know of what was found in the output's place.
    pub fn notes(&self) -> &[String] {
        self.writer.notes()
    }

    /// Streams every tensor that is not finished, then puts the result in its place in one step.
    pub fn run(
        self,
        device: &mut Device,
        settings: &Settings,
        interrupted: &AtomicBool,
        progress: &dyn Fn(u64),
    ) -> Result<Report> {
        let Begun { prepared, writer } = self;
        let ledger = Ledger::new(&prepared.plan, &writer);
        ledger.earlier().keys().for_each(|&job| progress(job_bytes(prepared, &prepared.plan.jobs[job])));
        let finished = |job: usize, result: &_| ledger.done(job, result);
        let jobs = (ledger.earlier(), &finished as Finished);
        let report = stream(prepared, &writer, jobs, device, settings, interrupted, progress);
        drop(ledger);
        match report {
            Ok(report) => {
                let _commit = settings.profile.as_ref().map(|profile| profile.span(Stage::Commit));
                let mut verified = None;
                let files = writer.commit_checked(|output| {
                    if settings.verify {
                        let max_memory = settings.max_memory;
                        let found = verify(output, &prepared.checkpoint, max_memory, interrupted)?;
                        let found = found.moved(output, prepared.destination.path());
                        found.result()?;
                        verified = Some(found);
                    }
                    Ok(())
                })?;
                Ok(Report { files, verified, ..report })
            }
            Err(e) => {
                // the reason of what else went wrong, if the input is another one now
                let changed = prepared.checkpoint.stamps().check();
                let changed = changed.err().filter(|e| matches!(e, Error::Changed { .. }));
                let interrupted = matches!(e, Error::Interrupted);
                Err(writer.abandon(changed.filter(|_| !interrupted).unwrap_or(e)))
            }
        }
    }
}

/// What another run must have in common with this one to go on with its files.
fn identity(prepared: &Prepared) -> Identity {
    let Prepared { checkpoint, plan, saturate, .. } = prepared;
    let mut digest = Formatted::default();
    // notes decide nothing, and where things lie neither
    let decides = (&plan.jobs, &plan.coded, &plan.files, &plan.rows, &plan.folders, plan.file_type, saturate);
    // a digest takes everything
    let _ = write!(digest, "{decides:?}");
    Identity {
        version: env!("CARGO_PKG_VERSION").into(),
        plan: digest.digest(),
        inputs: checkpoint.stamps().below(checkpoint.path()),
    }
}
