//! The command line: arguments, progress, tables, exit codes. No arithmetic.

/// A line on stdout. A reader that has gone away (`| head`) is no error.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

/// A line on stderr.
macro_rules! complain {
    ($($argument:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($argument)*);
    }};
}

mod args;
mod show;

use crate::{
    compare, device,
    error::{Error, Result},
    gpu::{self, GpuBackend},
    inspect,
    quantize::{self, Prepared, Settings},
    report::Report,
    unpack, validate,
};
use args::{Cli, Command, Out};
use clap::Parser;
use serde::Serialize;
use std::{
    ffi::OsString,
    path::Path,
    process::ExitCode,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// Set by Ctrl-C and by termination signals.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs the command line; this is all that `main` and the Python entry point do.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    catch_signals();
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain!("error: {e}");
            ExitCode::from(e.exit_code())
        }
    }
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

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Quantize(args) => {
            let request = args.request()?;
            let settings = args.out.settings()?;
            let prepared = quantize::prepare(&args.model, &request, args.on_non_finite(), &settings)?;
            write(prepared, &settings, &args.out)
        }
        Command::Dequantize(args) => {
            let settings = args.out.settings()?;
            let prepared =
                unpack::prepare(&args.model, args.dtype(), args.saturate, args.max_shard_size(), &settings)?;
            write(prepared, &settings, &args.out)
        }
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
        Command::Devices(args) => devices(args.check, args.json),
    }
}

/// Runs a plan with progress, or only shows it.
fn write(prepared: Prepared, settings: &Settings, out: &Out) -> Result<()> {
    if out.dry_run {
        return print(&prepared.plan.rows, out.json, || show::plan(&prepared));
    }
    if let Some(path) = &out.report {
        // now, not after hours of work
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return Err(Error::Usage(format!(
                "--report {}: {} is no directory",
                path.display(),
                folder.display()
            )));
        }
    }
    let quiet = out.quiet || out.json;
    if !quiet {
        for note in &prepared.plan.notes {
            complain!("note: {note}");
        }
    }
    let mut device = device::open(&settings.device, &settings.gpu)?;
    if !quiet {
        complain!("device: {}", device.why);
    }
    let progress = show::Progress::new(quantize::work_bytes(&prepared), quiet);
    let report =
        quantize::execute(&prepared, &mut device, settings, &INTERRUPTED, &|bytes| progress.advance(bytes));
    progress.finish(report.is_ok());
    let report = report?;
    if let Some(path) = &out.report {
        save(path, &report)?;
    }
    print_report(&report, out)
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
    std::fs::write(path, text + "\n").map_err(Error::io("write", path))
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
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for adapter in gpu::adapters() {
        let outcome = match (check, gpu::lacks(&adapter)) {
            (_, Some(lack)) => Some(format!("unusable: {lack}")),
            (false, None) => None,
            (true, None) => {
                let mut backend = GpuBackend::open(&adapter, gpu::GpuOptions::default())?;
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
    let auto = device::open(&device::Choice::Auto, &gpu::GpuOptions::default())?.why;
    let value = serde_json::json!({"adapters": rows, "auto": auto});
    print(&value, json, || show::devices(&rows, &auto))?;
    if failed.is_empty() { Ok(()) } else { Err(Error::Device(failed.join("\n"))) }
}
