//! What an unfinished run has finished, so that another can go on with it.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::destination::sync_directory;
use super::digest::{WrittenFile, of_file};
use super::workplace::remove;
use crate::error::{Error, Result};
use crate::reader::Stamp;

/// What a run does with which input. Only the same can go on with what it left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of this tool.
    pub version: String,
    /// SHA-256 of the plan, with everything that decides a byte of the output.
    pub plan: String,
    /// The files of the input.
    pub inputs: BTreeMap<String, Stamp>,
}

/// The finished files of a run, and what came of the jobs that made them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Manifest {
    #[serde(flatten)]
    pub identity: Identity,
    pub finished: Vec<WrittenFile>,
    pub jobs: BTreeMap<usize, Value>,
}

const NAME: &str = "manifest.json";
/// While it is written.
const NEW: &str = "manifest.new";

impl Identity {
    /// Why this run cannot go on with what `other` left, if so.
    fn differs(&self, other: &Identity) -> Option<String> {
        if self.version != other.version {
            return Some(format!("by version {} of monoquant, and this is {}", other.version, self.version));
        }
        let names = self.inputs.keys().chain(other.inputs.keys());
        if let Some(name) = names.into_iter().find(|&name| self.inputs.get(name) != other.inputs.get(name)) {
            return Some(format!("with another input: {name} has changed since"));
        }
        (self.plan != other.plan).then(|| "with other options, which make another output".into())
    }
}

impl Manifest {
    /// Its files in the folder.
    pub const NAMES: [&str; 2] = [NAME, NEW];

    pub fn new(identity: Identity) -> Self {
        Manifest { identity, finished: Vec::new(), jobs: BTreeMap::new() }
    }

    /// The manifest in a folder, if there is one that can be read.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(NAME)).ok()?).ok()
    }

    /// Writes it, in one step.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let (place, new) = (folder.join(NAME), folder.join(NEW));
        let save = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&new, &place)
        };
        save().map_err(Error::io("write", &place))?;
        sync_directory(folder)
    }

    pub fn remove(folder: &Path) -> Result<()> {
        remove(&folder.join(NAME))
    }

    /// Refuses to go on with what another run left.
    pub fn check(&self, identity: &Identity, folder: &Path) -> Result<()> {
        match identity.differs(&self.identity) {
            None => Ok(()),
            Some(how) => Err(Error::refused(format!(
                "{}: was begun {how}; --resume needs the same version, input and options; --force without --resume \
                 starts anew",
                folder.display()
            ))),
        }
    }

    /// Reads finished files again and forgets those that are not as they were; says which.
    pub fn verify(&mut self, output: &Path) -> Vec<String> {
        let same = |file: &WrittenFile| {
            of_file(&output.join(&file.name)).is_ok_and(|found| found == (file.bytes, file.sha256.clone()))
        };
        let (good, bad): (Vec<_>, Vec<_>) = std::mem::take(&mut self.finished)
            .into_par_iter()
            .map(|file| (same(&file), file))
            .partition_map(|(good, file)| match good {
                true => rayon::iter::Either::Left(file),
                false => rayon::iter::Either::Right(file.name),
            });
        self.finished = good;
        bad.iter().map(|name| format!("{name}: is not as it was finished, and is made again")).collect()
    }

    /// Removes all files of an output but the finished ones.
    pub fn prune(&self, output: &Path) -> Result<()> {
        let kept: HashSet<PathBuf> = self.finished.iter().map(|file| output.join(&file.name)).collect();
        for path in files_in(output)? {
            if !kept.contains(&path) {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// Every file in a folder and its folders.
pub(crate) fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        match path.is_dir() {
            true => files.extend(files_in(&path)?),
            false => files.push(path),
        }
    }
    Ok(files)
}
