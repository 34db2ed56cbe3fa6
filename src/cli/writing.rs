//! Commands that write a checkpoint: their plan, run and report.

use super::{
    INTERRUPTED,
    args::{Command, Out},
    print, show, understood,
};
use crate::{
    convert,
    error::{Error, Result},
    profile::{Profile, Stage},
    quantize::{self, Prepared, Settings},
    report::Report,
    reproduce, unpack,
};
use serde::Serialize;
use std::{ffi::OsString, path::Path, sync::atomic::AtomicBool, time::Instant};

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
    check_all_aside(&prepared, out)?;
    let (report, profiled) = work(start, &prepared, settings, out, command, said, None)?;
    print_report(&report, out)?;
    if let Some(path) = &out.report {
        save(path, &report)?;
    }
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
    check_all_aside(&prepared, out)?;
    let (report, profiled) = work(start, &prepared, settings, out, &cli.command, said, Some(watch))?;
    if let Some(path) = &out.report {
        save(path, &report)?;
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

fn check_all_aside(prepared: &Prepared, out: &Out) -> Result<()> {
    for (option, path) in [("--report", &out.report), ("--profile", &out.profile)] {
        if let Some(path) = path {
            check_aside(option, path, prepared, out.force)?;
        }
    }
    if out.profile.is_some() && out.profile == out.report {
        return Err(Error::Usage("--report and --profile name the same file; name two".into()));
    }
    Ok(())
}

/// Refuses a file beside the output that could not be written, or would destroy something, before hours of work.
fn check_aside(option: &str, path: &Path, prepared: &Prepared, force: bool) -> Result<()> {
    let refuse = |what: String| Err(Error::Usage(format!("{option} {}: {what}", path.display())));
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let output = prepared.destination.path();
    if path.starts_with(output) {
        return refuse("lies inside the output, which appears in one step; name a place beside it".into());
    }
    let Ok(folder) = folder.canonicalize() else {
        return refuse(format!("{} is no directory", folder.display()));
    };
    let model = prepared.checkpoint.path().canonicalize().unwrap_or_default();
    let whole = path.file_name().map(|name| folder.join(name)).unwrap_or_default();
    if whole.starts_with(&model) || output.canonicalize().is_ok_and(|output| whole.starts_with(output)) {
        return refuse("lies inside the input or the output; name another place".into());
    }
    if path.is_dir() {
        return refuse("is a directory; accepted is a file".into());
    }
    if path.exists() && !force {
        return refuse("exists already; --force replaces it".into());
    }
    Ok(())
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

fn save(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(std::io::Error::other)
        .map_err(Error::io("write", path))?;
    // in one step, so that no half of it is ever there
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.monoquant-new"));
    let saved = std::fs::write(&new, text + "\n").and_then(|()| std::fs::rename(&new, path));
    saved.map_err(|e| {
        let _ = std::fs::remove_file(&new);
        Error::io("write", path)(e)
    })
}
