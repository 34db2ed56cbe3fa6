//! Commands that hold an output against its input or its report.

use super::{
    INTERRUPTED,
    args::{Command, Reproduce, Verify, parsed},
    print, show,
    writing::{planned, work},
};
use crate::{
    error::{Error, Result},
    reader::Checkpoint,
    reproduce::{Recorded, Reproduction, compare},
    verify::{files, verify},
    writer::Destination,
};
use std::{
    ffi::OsString,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Instant,
};

/// `monoquant verify`.
pub fn check(args: &Verify) -> Result<()> {
    let max_memory = args.max_memory()?;
    let report = args.report.as_ref().map(|path| files::of_report(path, &files::read_report(path)?));
    let report = report.transpose()?;
    let against = Checkpoint::open(&args.against)?;
    // first, as a file that was damaged may not even open; an output that is not there is no matter of its files
    let there = report.as_deref().filter(|_| args.output.exists());
    let damaged = there.map(|files| files::check(&args.output, files)).transpose()?;
    let mut verification = match verify(&args.output, &against, max_memory, &INTERRUPTED) {
        Ok(verification) => verification,
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(e) => {
            let damaged = damaged.iter().flatten().map(|problem| problem.to_string());
            let all: Vec<String> = damaged.chain([e.to_string()]).collect();
            return Err(if all.len() > 1 { Error::Differs(all) } else { e });
        }
    };
    verification.files = report.map_or(0, |files| files.len() as u64);
    verification.problems.splice(0..0, damaged.into_iter().flatten());
    print(&verification, args.json, || show::verification(&verification))?;
    verification.result()
}

/// `monoquant reproduce`.
pub fn reproduce(args: &Reproduce) -> Result<()> {
    let recorded = Recorded::read(&args.report)?;
    let (output, place) = match &args.output {
        Some(output) => (output.clone(), None),
        None => aside(&recorded.output)?,
    };
    let done = again(args, &recorded, &output);
    if let Some(place) = place {
        let removed = std::fs::remove_dir_all(&place).map_err(Error::io("remove", &place));
        done.as_ref().map_or(Ok(()), |_| removed)?;
    }
    let done = done?;
    print(&done, args.json, || show::reproduction(&done))?;
    done.result()
}

/// A folder for an output that is made only to be compared, beside the recorded one if that folder is still there.
fn aside(recorded: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let name = recorded.file_name().unwrap_or_default();
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".monoquant-reproduced");
    let parent = recorded.parent().filter(|parent| parent.is_dir()).unwrap_or(Path::new("."));
    let place = parent.join(hidden);
    std::fs::create_dir(&place).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => {
            let what = "is there: another `monoquant reproduce` is at work, or was interrupted, and then it can be \
                        removed; --output names another place";
            Error::format(&place, what)
        }
        _ => Error::io("create", &place)(e),
    })?;
    Ok((place.join(name), Some(place)))
}

fn again(args: &Reproduce, recorded: &Recorded, output: &Path) -> Result<Reproduction> {
    let kind = |path: &Path| {
        let destination = Destination::of(path.to_owned());
        (matches!(destination, Destination::Directory(_)), destination.container())
    };
    if kind(output) != kind(&recorded.output) {
        return Err(Error::Usage(format!(
            "--output {}: the recorded output is {}; accepted is a name with the same ending",
            output.display(),
            recorded.output.display()
        )));
    }
    let model = args.model.as_ref().unwrap_or(&recorded.model);
    let mut arguments: Vec<OsString> = vec!["monoquant".into()];
    arguments.extend(recorded.command.iter().map(OsString::from));
    for (option, value) in
        [("--model", model.as_os_str()), ("--output", output.as_os_str()), ("--device", args.device.as_ref())]
    {
        arguments.extend([option.into(), value.to_owned()]);
    }
    if args.json {
        arguments.push("--quiet".into());
    }
    if recorded.has_hashes() {
        arguments.push("--hash-input".into());
    }
    let (cli, command) = parsed(arguments).map_err(|e| {
        let text = e.to_string();
        let text = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        Error::format(&args.report, format!("its command is not understood by this version: {text}"))
    })?;
    // a report of another origin must not write or replace what it likes
    if let Some(option) = recorded.command.iter().find(|option| !command.contains(option)) {
        let what = format!(
            "its command has `{option}`; accepted: options that decide bytes of the output, as --NAME=VALUE"
        );
        return Err(Error::format(&args.report, what));
    }
    if !matches!(cli.command, Command::Quantize(_) | Command::Dequantize(_) | Command::Convert(_)) {
        return Err(Error::format(&args.report, "its command makes no output"));
    }
    let start = Instant::now();
    let (prepared, settings, out) = planned(&cli.command)?;
    let (report, _) = work(start, &prepared, settings, out, &cli.command, command, None)?;
    Ok(compare(recorded, &report, output))
}
