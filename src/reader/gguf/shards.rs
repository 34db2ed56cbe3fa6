//! Models that are split over several GGUF files.

use std::path::{Path, PathBuf};

use super::Keys;
use crate::error::{Error, Result};
use crate::reader::{Checkpoint, read_header};

/// Where a file stands in a split model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::reader) struct Split {
    /// From 0 on.
    pub number: u64,
    pub count: u64,
    /// Of all shards together.
    pub tensors: Option<u64>,
}

/// What the key-values say of a split.
pub(in crate::reader) fn split(keys: &Keys) -> Option<Split> {
    let count = keys.number("split.count").filter(|&n| n > 1)?;
    let number = keys.number("split.no").unwrap_or(0);
    Some(Split { number, count, tensors: keys.number("split.tensors.count") })
}

/// `NAME` of `NAME-00001-of-00003.gguf`, the number from 1 on, and the count.
pub(crate) fn shard_name(path: &Path) -> Option<(&str, u64, u64)> {
    let (name, count) = path.file_stem()?.to_str()?.rsplit_once("-of-")?;
    let (name, number) = name.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && digits(count)).then_some((name, number.parse().ok()?, count.parse().ok()?))
}

/// The files of the model that a shard belongs to, in order. All of them must be there.
pub(in crate::reader) fn shards(path: &Path, split: Split) -> Result<Vec<PathBuf>> {
    let Split { number, count, .. } = split;
    let expected = |i: u64| format!("NAME-{:05}-of-{count:05}.gguf", i + 1);
    let Some((name, _, _)) =
        shard_name(path).filter(|&(_, i, n)| i == number.saturating_add(1) && i <= n && n == count)
    else {
        return Err(Error::format(
            path,
            format!(
                "is shard {} of {count} of a split model, and its name does not say so; accepted: {}",
                number.saturating_add(1),
                if number < count { expected(number) } else { "a number within the count".into() }
            ),
        ));
    };
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    let all: Vec<PathBuf> = (1..=count)
        .map(|i| path.with_file_name(format!("{name}-{i:05}-of-{count:05}.{extension}")))
        .collect();
    let missing: Vec<String> = (all.iter().filter(|p| !p.is_file()))
        .map(|p| p.file_name().unwrap_or_default().to_string_lossy().into_owned())
        .collect();
    match missing.is_empty() {
        true => Ok(all),
        false => Err(Error::format(
            path,
            format!(
                "is one of {count} shards, and {} missing: {}; download {} again",
                if missing.len() == 1 { "one is".to_owned() } else { format!("{} are", missing.len()) },
                crate::reader::enumerate(&missing),
                if missing.len() == 1 { "it" } else { "them" },
            ),
        )),
    }
}

impl Checkpoint {
    /// Adds the files of a GGUF model, which are one, or all shards in their order.
    pub(in crate::reader) fn add_shards(&mut self, files: Vec<PathBuf>) -> Result<()> {
        let count = files.len() as u64;
        let mut stated = None;
        for (number, path) in files.into_iter().enumerate() {
            self.stamps.add(&path)?;
            let header = read_header(&path)?;
            let Some(keys) = &header.gguf else {
                return Err(Error::format(&path, "is no GGUF file, as the others of the model are"));
            };
            let stands = split(keys);
            match stands {
                None if count == 1 => {}
                Some(split) if (split.number, split.count) == (number as u64, count) => {}
                _ => {
                    // names the shards that are missing
                    stands.map(|split| shards(&path, split)).transpose()?;
                    let what = format!(
                        "does not say that it is shard {} of {count} (split.no, split.count), as its name does",
                        number + 1
                    );
                    return Err(Error::format(&path, what));
                }
            }
            stated = stated.or(stands.and_then(|s| s.tensors));
            self.take(path, header, None)?;
        }
        if let Some(stated) = stated.filter(|&n| n != self.tensors.len() as u64) {
            let what = format!(
                "its shards hold {} tensors, and split.tensors.count is {stated}: some are cut off, or of another model",
                self.tensors.len()
            );
            return Err(Error::format(&self.path, what));
        }
        self.check_names()
    }
}
