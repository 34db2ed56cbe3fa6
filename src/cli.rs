//! The command line: arguments, progress, tables, exit codes. No arithmetic.

/// A line on stdout.
macro_rules! say {
    ($($argument:tt)*) => { $crate::cli::line(&mut std::io::stdout(), &format!($($argument)*)) };
}

/// A line on stderr.
macro_rules! complain {
    ($($argument:tt)*) => { $crate::cli::line(&mut std::io::stderr(), &format!($($argument)*)) };
}

mod args;
mod checks;
pub mod log;
mod show;

use crate::{
    compare, convert, device,
    error::{Error, Result},
    formats::OutputFormat,
    gpu::{self, GpuBackend, GpuOptions},
    inspect,
    plan::Request,
    profile::{Profile, Stage},
    quantize::{self, OnNonFinite, Prepared, Settings},
    report::Report,
    reproduce, unpack, validate,
};
use args::{Cli, Command, Out};
use clap::Parser;
use serde::Serialize;
use std::{
    ffi::OsString,
    io::{ErrorKind, Write},
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// Set when a line could not be written, other than to a reader that has gone away (`| head`).
static LOST: AtomicBool = AtomicBool::new(false);

/// Writes a line. Names of tensors may hold anything: control characters are written as escapes.
fn line(to: &mut dyn Write, text: &str) {
    let visible: String = text
        .chars()
        .flat_map(|c| if c.is_control() && c != '\n' { c.escape_default().collect() } else { vec![c] })
        .collect();
    written(writeln!(to, "{visible}").and_then(|()| to.flush()));
}

fn written(outcome: std::io::Result<()>) {
    if outcome.is_err_and(|e| e.kind() != ErrorKind::BrokenPipe) {
        LOST.store(true, Ordering::Relaxed);
    }
}

/// Set by Ctrl-C and by termination signals.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs the command line; this is all that `main` and the Python entry point do.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let (cli, said) = match args::parsed(arguments) {
        Ok(parsed) => parsed,
        Err(e) => {
            let _ = e.print();
            return u8::try_from(e.exit_code()).unwrap_or(2);
        }
    };
    log::start(cli.verbose);
    catch_signals();
    let start = Instant::now();
    let outcome = dispatch(&cli.command, start, said);
    tracing::info!(milliseconds = start.elapsed().as_millis() as u64, failed = outcome.is_err(), "ended");
    match outcome {
        Ok(()) if LOST.load(Ordering::Relaxed) => {
            complain!("error: the output could not be written");
            1
        }
        Ok(()) => 0,
        Err(e) => {
            complain!("error: {e}");
            e.exit_code()
        }
    }
}

/// What the options of `monoquant quantize` ask for, without a model.
pub fn request(options: &[String]) -> Result<(Request, OnNonFinite)> {
    let whole = ["monoquant", "quantize", "--model", "memory"].into_iter().map(str::to_owned);
    match Cli::try_parse_from(whole.chain(options.iter().cloned())) {
        Ok(Cli { command: Command::Quantize(args), .. }) => Ok((args.request()?, args.on_non_finite())),
        Ok(_) => Err(Error::Usage("internal error: options of another command".into())),
        Err(e) => {
            let text = e.to_string();
            let text = text.split("\n\nFor more").next().unwrap_or_default();
            Err(Error::Usage(text.trim().trim_start_matches("error: ").to_owned()))
        }
    }
}

/// The layouts of these names, each once.
pub fn formats(names: &[String]) -> Result<Vec<&'static dyn OutputFormat>> {
    args::chosen_formats(names)
}

/// The first signal asks the loop to stop and clean up; a second one ends the process.
fn catch_signals() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let handler = || {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        };
        // without a handler a signal still ends the process; only the clean-up is lost
        let _ = ctrlc::set_handler(handler);
    });
}

fn dispatch(command: &Command, start: Instant, said: Vec<String>) -> Result<()> {
    match command {
        Command::Quantize(_) | Command::Dequantize(_) | Command::Convert(_) => {
            let (prepared, settings, out) = planned(command)?;
            write(start, prepared, settings, out, command, said)
        }
        Command::Verify(args) => checks::check(args),
        Command::Reproduce(args) => checks::reproduce(args),
        Command::Inspect(args) => {
            let inspection = inspect::inspect(&args.model())?;
            print(&inspection, args.json, || show::inspection(&inspection))
        }
        Command::Compare(args) => {
            let comparison = compare::compare(&args.a, &args.b, &INTERRUPTED)?;
            print(&comparison, args.json, || show::comparison(&comparison))
        }
        Command::Validate(args) => {
            let validation = validate::validate(&args.model())?;
            print(&validation, args.json, || show::validation(&validation))?;
            match validation.problems.is_empty() {
                true => Ok(()),
                false => Err(Error::Refused(validation.problems)),
            }
        }
        Command::Calibrate(_) => Err(Error::Usage(
            "calibrate runs a model, and so needs torch; accepted: pip install mono-quant, and its monoquant calibrate".into(),
        )),
        Command::Devices(args) => devices(args.check, args.json),
    }
}

/// The plan of a command that writes a checkpoint.
fn planned(command: &Command) -> Result<(Prepared, Settings, &Out)> {
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
fn write(
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
    for (option, path) in [("--report", &out.report), ("--profile", &out.profile)] {
        if let Some(path) = path {
            check_aside(option, path, &prepared, out.force)?;
        }
    }
    if out.profile.is_some() && out.profile == out.report {
        return Err(Error::Usage("--report and --profile name the same file; name two".into()));
    }
    let (report, profiled) = work(start, &prepared, settings, out, command, said)?;
    print_report(&report, out)?;
    if let Some(path) = &out.report {
        save(path, &report)?;
    }
    profiled
}

/// Runs a plan with progress; its report, and whether its profile could be written.
fn work(
    start: Instant,
    prepared: &Prepared,
    mut settings: Settings,
    out: &Out,
    command: &Command,
    said: Vec<String>,
) -> Result<(Report, Result<()>)> {
    settings.profile = match &out.profile {
        Some(path) => Some(Profile::create(path, start)?),
        None => Profile::logged(start),
    };
    if let Some(profile) = &settings.profile {
        drop(profile.since(start, Stage::Plan));
    }
    let quiet = out.quiet || out.json;
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
    let progress = show::Progress::new(quantize::work_bytes(prepared), quiet);
    let report = begun.run(&mut device, &settings, &INTERRUPTED, &|bytes| progress.advance(bytes));
    progress.finish();
    // of a run that failed, too: threads may still be at work
    let profiled = settings.profile.map_or(Ok(()), |profile| profile.finish());
    let mut report = report?;
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

fn print(value: &impl Serialize, json: bool, human: impl FnOnce()) -> Result<()> {
    if json {
        let text = serde_json::to_string_pretty(value)
            .map_err(std::io::Error::other)
            .map_err(Error::io("write", "stdout"))?;
        say!("{text}");
    } else {
        human();
    }
    Ok(())
}

fn devices(check: bool, json: bool) -> Result<()> {
    let options = GpuOptions { cache: gpu::cache_directory(), ..GpuOptions::default() };
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for adapter in gpu::adapters() {
        let outcome = match (check, gpu::lacks(&adapter)) {
            (_, Some(lack)) => Some(format!("unusable: {lack}")),
            (false, None) => None,
            (true, None) => {
                let mut backend = GpuBackend::open(&adapter, options.clone())?;
                let outcome = backend.check(false)?;
                failed.extend(
                    outcome.differences.iter().take(10).map(|d| format!("{}: {d}", adapter.facts.name)),
                );
                Some(match outcome.differences.len() {
                    0 => format!("same bytes as the CPU in {} cases, {} words", outcome.cases, outcome.words),
                    n => format!("differs from the CPU in {n} of {} cases", outcome.cases),
                })
            }
        };
        rows.push((adapter.facts, outcome));
    }
    let mut auto = device::open(&device::Choice::Auto, &options)?;
    if check {
        auto.verify(|_| gpu::every_step())?;
    }
    let auto = auto.why;
    let value = serde_json::json!({"adapters": rows, "auto": auto});
    print(&value, json, || show::devices(&rows, &auto))?;
    if failed.is_empty() { Ok(()) } else { Err(Error::Device(failed.join("\n"))) }
}
