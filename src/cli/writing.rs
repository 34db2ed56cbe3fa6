//! Commands that write a checkpoint: their plan, run and report.

use super::{
    INTERRUPTED,
    args::{Command, Out},
    aside, print, show, understood,
};
use crate::{
    convert,
    error::{Error, Result},
    profile::{Profile, Stage},
    quantize::{self, Prepared, Settings},
    report::Report,
    reproduce, unpack,
};
use std::{ffi::OsString, sync::atomic::AtomicBool, time::Instant};

/// The plan of a command that writes a checkpoint.
pub(super) fn planned(command: &Command) -> Result<(Prepared, Settings, &Out)> {
    match command {
        Command::Quantize(args) => {
            let request = args.request()?;
            let settings = args.out.settings()?;
            let prepared = quantize::prepare(&args.model, &request, args.on_non_finite(), &settings)?;
            Ok((prepared, settings, &args.out))
        }
        Command::Dequantize(args) => {
            let settings = args.out.settings()?;
            let prepared =
                unpack::prepare(&args.model, args.dtype(), args.saturate, args.max_shard_size(), &settings)?;
            Ok((prepared, settings, &args.out))
        }
        Command::Convert(args) => {
            let settings = args.out.settings()?;
            let prepared = convert::prepare(&args.model, &args.formats()?, args.max_shard_size(), &settings)?;
            Ok((prepared, settings, &args.out))
        }
        _ => Err(Error::Usage("internal error: a command that writes nothing".into())),
    }
}

/// Runs a plan with progress, or only shows it. `said` is the command as its report is to hold it.
pub(super) fn write(
    start: Instant,
    prepared: Prepared,
    settings: Settings,
    out: &Out,
    command: &Command,
    said: Vec<String>,
) -> Result<()> {
    if out.dry_run {
        return print(&prepared.plan.rows, out.json, || show::plan(&prepared));
    }
    aside::check(&prepared, out)?;
    let (report, profiled) = work(start, &prepared, settings, out, command, said, None)?;
    // first what outlives a standard output that fails
    if let Some(path) = &out.report {
        aside::save(path, &report)?;
    }
    print_report(&report, out)?;
    profiled
}

/// Whoever waits for a run, in place of a person at a terminal.
pub struct Watch<'a> {
    /// Asks the run to stop.
    pub stop: &'a AtomicBool,
    /// Told of bytes of input that were gone through, and of how many there are.
    pub advance: &'a dyn Fn(u64, u64),
}

/// Runs a command that writes a checkpoint for another door: nothing is printed.
pub fn run_watched(arguments: Vec<OsString>, watch: &Watch) -> Result<Report> {
    let start = Instant::now();
    let (cli, said) = understood(arguments)?;
    let (prepared, settings, out) = planned(&cli.command)?;
    aside::check(&prepared, out)?;
    let (report, profiled) = work(start, &prepared, settings, out, &cli.command, said, Some(watch))?;
    if let Some(path) = &out.report {
        aside::save(path, &report)?;
    }
    profiled.map(|()| report)
}

/// Runs a plan with progress; its report, and whether its profile could be written.
pub(super) fn work(
    start: Instant,
    prepared: &Prepared,
    mut settings: Settings,
    out: &Out,
    command: &Command,
    said: Vec<String>,
    watch: Option<&Watch>,
) -> Result<(Report, Result<()>)> {
    settings.profile = match &out.profile {
        Some(path) => Some(Profile::create(path, start)?),
        None => Profile::logged(start),
    };
    if let Some(profile) = &settings.profile {
        drop(profile.since(start, Stage::Plan));
    }
    let quiet = out.quiet || out.json || watch.is_some();
    if !quiet {
        for note in &prepared.plan.notes {
            complain!("note: {note}");
        }
    }
    let mut device = quantize::open(prepared, &settings)?;
    if !quiet {
        complain!("device: {}", device.why);
    }
    let begun = quantize::begin(prepared, &settings)?;
    if !quiet {
        for note in begun.notes() {
            complain!("note: {note}");
        }
    }
    let total = quantize::work_bytes(prepared);
    let notes = begun.notes().to_vec();
    let report = match watch {
        Some(Watch { stop, advance }) => {
            begun.run(&mut device, &settings, stop, &|bytes| advance(bytes, total))
        }
        None => {
            let progress = show::Progress::new(total, quiet);
            let report = begun.run(&mut device, &settings, &INTERRUPTED, &|bytes| progress.advance(bytes));
            progress.finish();
            report
        }
    };
    // of a run that failed, too: threads may still be at work
    let profiled = settings.profile.map_or(Ok(()), |profile| profile.finish());
    let mut report = report?;
    if watch.is_some() {
        report.notes.extend(notes); // nobody was told yet
    }
    report.command = said;
    if out.hash_input {
        reproduce::hash(prepared.checkpoint.path(), &mut report.input)?;
    }
    if let Command::Quantize(args) = command
        && let Some(path) = args.calibration()
    {
        report.input.push(reproduce::beside(path)?);
    }
    Ok((report, profiled))
}

fn print_report(report: &Report, out: &Out) -> Result<()> {
    if out.json {
        return print(report, true, || {});
    }
    if out.quiet {
        for warning in &report.warnings {
            complain!("warning: {warning}");
        }
    } else {
        show::report(report);
    }
    say!("{}", report.output);
    Ok(())
}
