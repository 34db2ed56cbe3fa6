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
mod aside;
mod checks;
pub mod log;
mod show;
#[cfg_attr(not(unix), path = "cli/signals_windows.rs")]
mod signals;
mod writing;

use crate::{
    compare, device,
    error::{Error, Result},
    formats::OutputFormat,
    gpu::{self, GpuBackend, GpuOptions},
    inspect,
    plan::Request,
    quantize::OnNonFinite,
    validate,
};
use args::{Cli, Command};
use serde::Serialize;
use std::{
    borrow::Cow,
    ffi::OsString,
    io::{ErrorKind, Write},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

pub use writing::{Watch, run_watched};
use writing::{planned, write};

/// Set when a line could not be written, other than to a reader that has gone away (`| head`).
static LOST: AtomicBool = AtomicBool::new(false);

/// Writes a line. Names of tensors may hold anything: control characters are written as escapes.
fn line(to: &mut dyn Write, text: &str) {
    let strange = |c: char| c.is_control() && c != '\n';
    let visible: Cow<str> = match text.contains(strange) {
        false => text.into(),
        true => text
            .chars()
            .flat_map(|c| if strange(c) { c.escape_default().collect() } else { vec![c] })
            .collect(),
    };
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
    let whole = ["quantize", "--model", "memory"].into_iter().map(OsString::from);
    match understood(whole.chain(options.iter().map(OsString::from)))? {
        (Cli { command: Command::Quantize(args), .. }, _) => Ok((args.request()?, args.on_non_finite())),
        _ => Err(Error::Usage("internal error: options of another command".into())),
    }
}

/// A command and its options from another door, and what of them a report holds.
fn understood(arguments: impl IntoIterator<Item = OsString>) -> Result<(Cli, Vec<String>)> {
    args::parsed(std::iter::once("monoquant".into()).chain(arguments)).map_err(|e| {
        let text = e.to_string();
        let text = text.split("\n\nFor more").next().unwrap_or_default();
        Error::Usage(text.trim().trim_start_matches("error: ").to_owned())
    })
}

/// The layouts of these names, each once.
pub fn formats(names: &[String]) -> Result<Vec<&'static dyn OutputFormat>> {
    args::chosen_formats(names)
}

/// The first signal asks the loop to stop and clean up; a second one ends the process.
fn catch_signals() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        // without a handler a signal still ends the process; only the clean-up is lost
        let _ = signals::catch(|| {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        });
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
