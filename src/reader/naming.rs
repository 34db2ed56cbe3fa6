//! Names of tensors: in messages, and where several mean one.

use super::{Checkpoint, Header, SHOWN};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Prefixes that wrappers put before every name: DataParallel, torch.compile.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];
/// Wrappers in wrappers.
const WRAPPED: usize = 8;

impl Checkpoint {
    /// Takes off what a wrapper put before every name, and takes up ties that an earlier run noted.
    pub(super) fn unwrap_names(&mut self) {
        for _ in 0..WRAPPED {
            let Some(prefix) = WRAPPERS.into_iter().find(|prefix| {
                let mut names = self.tensors.iter().map(|t| &t.info.name).chain(self.tied.keys());
                !self.tensors.is_empty()
                    && names.all(|name| name.len() > prefix.len() && name.starts_with(prefix))
            }) else {
                break;
            };
            let unwrapped = |name: &str| name[prefix.len()..].to_owned();
            self.tensors.iter_mut().for_each(|t| t.info.name = unwrapped(&t.info.name));
            self.tied = self.tied.iter().map(|(a, b)| (unwrapped(a), unwrapped(b))).collect();
            self.notes.push(format!("every name began with `{prefix}`, which is taken off"));
        }
        let ours = self.metadata.get("monoquant").and_then(|text| serde_json::from_str(text).ok());
        let noted = ours.and_then(|ours: serde_json::Value| {
            serde_json::from_value::<BTreeMap<String, String>>(ours.get("tied")?.clone()).ok()
        });
        let stored: HashSet<&str> = self.tensors.iter().map(|t| t.info.name.as_str()).collect();
        let noted = noted.unwrap_or_default().into_iter().filter(|(name, _)| !stored.contains(name.as_str()));
        self.tied.extend(noted);
    }

    /// Refuses two tensors of one name, which only happens among files without an index.
    pub(super) fn check_names(&self) -> Result<()> {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for t in &self.tensors {
            if let Some(first) = seen.insert(&t.info.name, t.file) {
                let path = |file: usize| self.files.get(file).unwrap_or(&self.path);
                return Err(Error::format(
                    path(t.file),
                    format!("tensor `{}` is also in {}", t.info.name, path(first).display()),
                ));
            }
        }
        Ok(())
    }
}

/// Of tied names, keeps the tensor under one that the index lists.
pub(super) fn prefer_listed(header: &mut Header, names: &HashSet<String>) {
    for (info, ..) in header.tensors.iter_mut().filter(|(info, ..)| !names.contains(&info.name)) {
        let listed = header.tied.iter().find(|(other, name)| **name == info.name && names.contains(*other));
        if let Some(other) = listed.map(|(other, _)| other.clone()) {
            header.tied.remove(&other);
            header.tied.values_mut().filter(|name| **name == info.name).for_each(|n| n.clone_from(&other));
            info.name = other;
        }
    }
}

/// Names for a message: the first few, and how many more there are.
pub(super) fn enumerate<T: AsRef<str>>(names: &[T]) -> String {
    enumerate_some(&names[..names.len().min(SHOWN)], names.len())
}

/// The same where only the first few of `all` are at hand.
pub(super) fn enumerate_some<T: AsRef<str>>(shown: &[T], all: usize) -> String {
    let names: Vec<String> = shown.iter().map(|n| format!("`{}`", n.as_ref())).collect();
    match all - names.len() {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}
