//! Size and time of the input's files: a checkpoint that changes while it is read makes no checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a file was like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Its size.
    pub bytes: u64,
    /// When it was last changed, in nanoseconds since 1970, where that is known.
    pub modified: Option<u64>,
}

/// The files of an input, and what they were like before they were read.
#[derive(Debug, Clone, Default)]
pub struct Stamps(BTreeMap<PathBuf, Stamp>);

impl Stamps {
    pub(super) fn add(&mut self, path: &Path) -> Result<()> {
        let stamp = Stamp::of(path).map_err(Error::io("read", path))?;
        self.0.insert(path.to_owned(), stamp);
        Ok(())
    }

    pub(super) fn forget(&mut self, path: &Path) {
        self.0.remove(path);
    }

    /// Fails if any of the files is another one now, or gone.
    pub fn check(&self) -> Result<()> {
        for (path, before) in &self.0 {
            let now = match Stamp::of(path) {
                Ok(now) if now == *before => continue,
                Ok(now) => now,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(Error::Changed { path: path.clone(), what: "it is gone".into() });
                }
                Err(e) => return Err(Error::io("read", path)(e)),
            };
            let what = match now.bytes == before.bytes {
                true => "it was written to".into(),
                false => format!("it had {} bytes and has {}", before.bytes, now.bytes),
            };
            return Err(Error::Changed { path: path.clone(), what });
        }
        Ok(())
    }

    /// The files by their paths below `root`.
    pub fn below(&self, root: &Path) -> BTreeMap<String, Stamp> {
        let name = |path: &Path| {
            let relative = path.strip_prefix(root).ok().filter(|rest| !rest.as_os_str().is_empty());
            let named = relative.or(path.file_name().map(Path::new)).unwrap_or(path);
            named.to_string_lossy().replace('\\', "/")
        };
        self.0.iter().map(|(path, stamp)| (name(path), stamp.clone())).collect()
    }
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let kind = fs::metadata(path)?;
        let modified = kind.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(Stamp { bytes: kind.len(), modified: modified.map(|since| since.as_nanos() as u64) })
    }
}
