//! The files of an output against what a report holds of them.

use super::Problem;
use crate::{
    error::{Error, Result},
    reader::json,
    threads,
    writer::{WrittenFile, list_files, sha256_of_file},
};
use rayon::prelude::*;
use serde_json::Value;
use std::{
    collections::HashSet,
    path::{Component, Path, PathBuf},
};

/// The JSON of a report.
pub fn read_report(path: &Path) -> Result<Value> {
    json::read(path)
}

/// The files that a report holds: at least one, each once, by a path within the output.
pub fn of_report(path: &Path, report: &Value) -> Result<Vec<WrittenFile>> {
    let files = report.get("files").cloned().unwrap_or_default();
    let files: Vec<WrittenFile> = serde_json::from_value(files).unwrap_or_default();
    if files.is_empty() {
        return Err(Error::format(
            path,
            "holds no SHA-256 of files; accepted: what --report or --json of quantize, dequantize or convert wrote",
        ));
    }
    let mut names = HashSet::new();
    for name in files.iter().map(|file| &file.name) {
        // a report of another origin must not have other files read
        let inside = Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
        if name.is_empty() || !inside {
            let what = format!("holds the SHA-256 of `{name}`; accepted: a file in the output");
            return Err(Error::format(path, what));
        }
        if !names.insert(name) {
            return Err(Error::format(path, format!("holds the SHA-256 of `{name}` twice")));
        }
    }
    Ok(files)
}

/// Where a file of a report lies. An output of one file may have another name now.
fn place(output: &Path, files: &[WrittenFile], file: &WrittenFile) -> PathBuf {
    if output.is_file() && files.len() == 1 { output.to_owned() } else { output.join(&file.name) }
}

/// Files of an output that are not those of a report, and files that the report does not know.
pub fn check(output: &Path, files: &[WrittenFile]) -> Result<Vec<Problem>> {
    threads::start()?;
    if output.is_file() && files.len() > 1 {
        let what = format!(
            "is one file, and the report holds {} files; accepted: the output that the report is of",
            files.len()
        );
        return Err(Error::format(output, what));
    }
    let found: Vec<Result<Option<Problem>>> = files
        .par_iter()
        .map(|file| {
            let path = place(output, files, file);
            let problem = |value: String, expected: String| {
                Some(Problem { file: path.clone(), tensor: None, index: None, value, expected, count: 1 })
            };
            match sha256_of_file(&path) {
                Ok((bytes, _)) if bytes != file.bytes => {
                    Ok(problem(format!("{bytes} bytes"), format!("{}, as in the report", file.bytes)))
                }
                Ok((_, sha256)) if sha256 != file.sha256 => {
                    Ok(problem(format!("SHA-256 {sha256}"), format!("{}, as in the report", file.sha256)))
                }
                Ok(_) => Ok(None),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    Ok(problem("is missing".into(), "a file of the report".into()))
                }
                Err(e) => Err(Error::io("read", path)(e)),
            }
        })
        .collect();
    let mut problems = Vec::new();
    for found in found {
        problems.extend(found?);
    }
    if output.is_dir() {
        let known: HashSet<PathBuf> = files.iter().map(|file| output.join(&file.name)).collect();
        for path in list_files(output)?.into_iter().filter(|path| !known.contains(path)) {
            let (value, expected) = ("is there".into(), "not, as the report holds no such file".into());
            problems.push(Problem { file: path, tensor: None, index: None, value, expected, count: 1 });
        }
    }
    Ok(problems)
}
