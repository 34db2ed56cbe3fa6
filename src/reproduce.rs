//! A run again, from its report: the same bytes, or what differs and why.

use crate::{
    error::{Error, Result},
    reader::Checkpoint,
    report::{InputFile, Report},
    verify::{files, folders},
    writer::{WrittenFile, sha256_of_file},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What a report says of how its output was made.
#[derive(Debug, Clone, Deserialize)]
pub struct Recorded {
    /// Version of the tool.
    pub version: String,
    /// The command's name and the options that decide bytes.
    #[serde(default)]
    pub command: Vec<String>,
    /// The input's path, as it was given.
    pub model: PathBuf,
    /// The output's path, as it was given.
    pub output: PathBuf,
    /// The input's files.
    #[serde(default)]
    pub input: Vec<InputFile>,
    /// The output's files.
    #[serde(default)]
    pub files: Vec<WrittenFile>,
    /// What was done to each tensor.
    #[serde(default)]
    pub tensors: Vec<Value>,
}

impl Recorded {
    /// Reads a report.
    ///
    /// # Errors
    /// If it is none, or does not say how its output was made.
    pub fn read(path: &Path) -> Result<Self> {
        let report = files::read_report(path)?;
        files::of_report(path, &report)?;
        let recorded: Recorded = serde_json::from_value(report)
            .map_err(|e| Error::format(path, format!("is no report of monoquant: {e}")))?;
        match recorded.command.first().map(String::as_str) {
            Some("quantize" | "dequantize" | "convert") => Ok(recorded),
            Some(other) => Err(Error::format(
                path,
                format!("is of `{other}`; accepted: a report of quantize, dequantize or convert"),
            )),
            None => Err(Error::format(
                path,
                "does not say which command made the output; accepted: what --report or --json of the command line wrote",
            )),
        }
    }

    /// Whether it holds the SHA-256 of what was read.
    pub fn has_hashes(&self) -> bool {
        self.input.iter().any(|file| file.sha256.is_some())
    }
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Reproduction {
    /// Files whose bytes are the same.
    pub same: usize,
    /// How the others differ.
    pub differences: Vec<String>,
    /// Why that may be, as far as it is known.
    pub causes: Vec<String>,
}

impl Reproduction {
    /// An error that says what differs, if anything does.
    pub fn result(&self) -> Result<()> {
        match self.differences.is_empty() {
            true => Ok(()),
            false => Err(Error::Differs(self.differences.iter().chain(&self.causes).cloned().collect())),
        }
    }
}

/// Puts the SHA-256 of the input's files into the list of them.
pub fn hash(model: &Path, input: &mut [InputFile]) -> Result<()> {
    for file in input.iter_mut().filter(|file| file.sha256.is_none()) {
        let path = if model.is_dir() { model.join(&file.name) } else { model.with_file_name(&file.name) };
        file.sha256 = Some(sha256_of_file(&path).map_err(Error::io("read", path))?.1);
    }
    Ok(())
}

/// A file beside the input that decides bytes, too.
pub fn beside(path: &Path) -> Result<InputFile> {
    let (bytes, sha256) = sha256_of_file(path).map_err(Error::io("read", path))?;
    Ok(InputFile { name: path.display().to_string(), bytes, sha256: Some(sha256) })
}

/// Compares what came of a second run, which lies at `output`, with the first one's report.
pub fn compare(recorded: &Recorded, again: &Report, output: &Path) -> Reproduction {
    let mut differences = Vec::new();
    let mut same = 0;
    let renamed = recorded.files.len() == 1 && again.files.len() == 1;
    for file in &recorded.files {
        match again.files.iter().find(|other| renamed || other.name == file.name) {
            None => differences.push(format!("{}: is not made", file.name)),
            Some(other) if other.bytes != file.bytes => {
                differences.push(format!("{}: {} bytes, and had {}", file.name, other.bytes, file.bytes))
            }
            Some(other) if other.sha256 != file.sha256 => {
                differences.push(format!("{}: SHA-256 {}, and had {}", file.name, other.sha256, file.sha256))
            }
            Some(_) => same += 1,
        }
    }
    let made = again.files.iter().filter(|_| !renamed);
    for file in made.filter(|file| recorded.files.iter().all(|other| other.name != file.name)) {
        differences.push(format!("{}: was not there before", file.name));
    }
    let causes = if differences.is_empty() { Vec::new() } else { causes(recorded, again, output) };
    Reproduction { same, differences, causes }
}

fn causes(recorded: &Recorded, again: &Report, output: &Path) -> Vec<String> {
    let mut causes = Vec::new();
    if recorded.version != again.version {
        causes.push(format!("monoquant is version {}, and was {}", again.version, recorded.version));
    }
    let inputs = changed(&recorded.input, &again.input);
    let known = recorded.has_hashes();
    let told = !causes.is_empty() || !inputs.is_empty();
    causes.extend(inputs);
    causes.extend(first_row(&recorded.tensors, again));
    causes.extend(first_tensor(&recorded.output, output));
    if !told {
        causes.push(match known {
            true => "version, options and input are the same: something else than they decided bytes, which is a bug"
                .into(),
            false => "version, options and sizes of the input are the same, so its content must have changed; of a report \
                      that was made with --hash-input it would be known which file"
                .into(),
        });
    }
    causes
}

/// Files of the input that are others now.
fn changed(before: &[InputFile], now: &[InputFile]) -> Vec<String> {
    // the only weights file of an input may have another name now
    let find = |name: &str| now.iter().find(|file| file.name == name);
    let mut changed = Vec::new();
    for file in before {
        let name = &file.name;
        match find(name).or_else(|| now.first().filter(|_| before.len() == 1 && now.len() == 1)) {
            None => changed.push(format!("input {name}: is not there")),
            Some(other) if other.bytes != file.bytes => {
                changed.push(format!("input {name}: has {} bytes, and had {}", other.bytes, file.bytes))
            }
            Some(other) if file.sha256.is_some() && other.sha256 != file.sha256 => {
                changed.push(format!("input {name}: its content has changed"));
            }
            Some(_) => {}
        }
    }
    for file in now.iter().filter(|_| before.len() > 1 || now.len() > 1) {
        if before.iter().all(|other| other.name != file.name) {
            changed.push(format!("input {}: was not there before", file.name));
        }
    }
    changed
}

/// The first tensor with which something else was done, or that came out otherwise by its SQNR.
fn first_row(before: &[Value], again: &Report) -> Option<String> {
    let now = serde_json::to_value(&again.tensors).unwrap_or_default();
    let now = now.as_array().map(Vec::as_slice).unwrap_or_default();
    for (i, row) in before.iter().enumerate() {
        let name = row["name"].as_str().unwrap_or_default();
        let Some(other) = now.get(i).filter(|other| other["name"] == row["name"]) else {
            return Some(format!("{name}: is the first tensor that is elsewhere or missing now"));
        };
        for key in ["dtype", "shape", "action", "before", "after"] {
            if row[key] != other[key] {
                return Some(format!(
                    "{name}: is the first tensor that differs: {key} {}, and was {}",
                    other[key], row[key]
                ));
            }
        }
        if row["sqnr_db"].as_f64() != other["sqnr_db"].as_f64() {
            return Some(format!(
                "{name}: is the first tensor with another SQNR: {} dB, and had {} dB",
                other["sqnr_db"], row["sqnr_db"]
            ));
        }
    }
    None
}

/// The first tensor of which a byte differs, if what was made before is still there.
fn first_tensor(before: &Path, now: &Path) -> Option<String> {
    for (before, now) in folders(before).iter().zip(&folders(now)) {
        let (Ok(before), Ok(now)) = (Checkpoint::open(before), Checkpoint::open(now)) else { continue };
        let (Ok(old), Ok(new)) = (before.source(), now.source()) else { continue };
        for (i, tensor) in before.tensors().iter().enumerate() {
            let info = &tensor.info;
            let Some(j) = now.tensors().iter().position(|other| other.info == *info) else {
                return Some(format!(
                    "{}: is the first tensor that is missing or of another shape",
                    info.name
                ));
            };
            let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
            for at in (0..info.bytes()).step_by(x.len()) {
                let n = x.len().min((info.bytes() - at) as usize);
                if old.read(i, at, &mut x[..n]).is_err() || new.read(j, at, &mut y[..n]).is_err() {
                    return None;
                }
                if let Some(place) = x[..n].iter().zip(&y[..n]).position(|(x, y)| x != y) {
                    let byte = at + place as u64;
                    return Some(format!(
                        "{}: is the first tensor whose content differs, from byte {byte} on",
                        info.name
                    ));
                }
            }
        }
    }
    None
}
