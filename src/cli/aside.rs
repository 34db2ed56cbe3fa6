//! Files that a run writes beside its output: the report and the trace.

use super::args::Out;
use crate::{
    error::{Error, Result},
    quantize::Prepared,
};
use serde::Serialize;
use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// Refuses files that could not be written, or would destroy something, before hours of work.
pub(super) fn check(prepared: &Prepared, out: &Out) -> Result<()> {
    let mut places = Vec::new();
    for (option, path) in [("--report", &out.report), ("--profile", &out.profile)] {
        if let Some(path) = path {
            places.push(check_one(option, path, prepared, out.force)?);
        }
    }
    match places.as_slice() {
        [report, profile] if report == profile => {
            Err(Error::Usage("--report and --profile name the same file; name two".into()))
        }
        _ => Ok(()),
    }
}

/// Where it is, by a name that no other spelling has.
fn check_one(option: &str, path: &Path, prepared: &Prepared, force: bool) -> Result<PathBuf> {
    let refuse = |what: String| Err(Error::Usage(format!("{option} {}: {what}", path.display())));
    let output = prepared.destination.path();
    if path.starts_with(output) {
        return refuse("lies inside the output, which appears in one step; name a place beside it".into());
    }
    if path.is_dir() {
        return refuse("is a directory; accepted is a file".into());
    }
    let folder = folder(path);
    let Ok(whole) = place(path) else {
        return refuse(format!("{} is no directory", folder.display()));
    };
    let model = prepared.checkpoint.path().canonicalize().unwrap_or_default();
    let within = |other: io::Result<PathBuf>| other.is_ok_and(|other| whole.starts_with(other));
    if whole.starts_with(&model) || within(output.canonicalize()) || within(place(output)) {
        return refuse("lies inside the input or the output; name another place".into());
    }
    match fs::symlink_metadata(path) {
        Ok(kind) if !kind.is_file() => {
            return refuse(
                "is a link, a device or a pipe; accepted is a file, or the name of a new one".into(),
            );
        }
        Ok(_) if !force => return refuse("exists already; --force replaces it".into()),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return refuse(e.to_string()),
    }
    match fresh(folder) {
        Ok(_) => Ok(whole),
        Err(e) => refuse(format!("cannot write in {}: {e}", folder.display())),
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn place(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(folder(path).canonicalize()?.join(name))
}

/// A file that nobody has, with the mode that files usually get. It is removed when dropped.
fn fresh(folder: &Path) -> io::Result<NamedTempFile> {
    let mut new = tempfile::Builder::new();
    new.prefix(".monoquant-");
    #[cfg(unix)]
    new.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    new.tempfile_in(folder)
}

/// Writes a report, in one step, so that no half of it is ever there.
pub(super) fn save(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::other);
    let saved = text.and_then(|text| {
        let mut file = fresh(folder(path))?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.persist(path).map_err(|e| e.error)
    });
    saved.map(drop).map_err(Error::io("write", path))
}
