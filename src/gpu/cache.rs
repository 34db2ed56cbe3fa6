//! Compiled pipelines on disk, as the driver hands them out: one file an adapter, in the user's directory of caches.
//! Nothing here can fail a run: what cannot be read or written is done without.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
};

/// Largest file that is read or written, in bytes.
const LARGEST: usize = 16 << 20;

/// Where pipelines are kept: `MONOQUANT_CACHE_DIR`, else `monoquant` in the user's directory of caches. `None` if the
/// variable is empty, or there is no such directory.
pub fn cache_directory() -> Option<PathBuf> {
    directory(|name| std::env::var_os(name))
}

fn directory(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(path) = variable("MONOQUANT_CACHE_DIR") {
        return (!path.is_empty()).then(|| path.into());
    }
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = if cfg!(windows) {
        absolute("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        absolute("HOME").map(|home| home.join("Library/Caches"))
    } else {
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))
    };
    caches.map(|path| path.join("monoquant"))
}

/// What a file holds.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Kept {
    /// The driver's own.
    pub data: Vec<u8>,
    /// Which pipelines that is: what drivers return may differ from run to run without any that is new.
    pub pipelines: BTreeSet<u32>,
}

/// What stands for a pipeline: a checksum of the source and constants that it is compiled from.
pub(super) fn identity(source: &str, input_dtype: u32, lanes: u32) -> u32 {
    crc32fast::hash(format!("{input_dtype} {lanes}\n{source}").as_bytes())
}

/// Reads a file: the data, the pipelines and their number, a checksum. `None` if it is absent, damaged or too large.
pub(super) fn read(path: &Path) -> Option<Kept> {
    let mut data = Vec::new();
    File::open(path).ok()?.take(LARGEST as u64 + 1).read_to_end(&mut data).ok()?;
    let (rest, checksum) = data.split_last_chunk::<4>()?;
    if data.len() > LARGEST || crc32fast::hash(rest) != u32::from_le_bytes(*checksum) {
        return None;
    }
    let (rest, count) = rest.split_last_chunk::<4>()?;
    let length = rest.len().checked_sub(4 * u32::from_le_bytes(*count) as usize)?;
    let (words, _) = rest[length..].as_chunks::<4>();
    let pipelines = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    data.truncate(length);
    Some(Kept { data, pipelines })
}

/// Replaces a file in one step.
pub(super) fn write(path: &Path, kept: &Kept) {
    let Kept { data, pipelines } = kept;
    let words = pipelines.iter().copied().chain([pipelines.len() as u32]);
    let mut bytes: Vec<u8> = data.iter().copied().chain(words.flat_map(u32::to_le_bytes)).collect();
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    if bytes.len() > LARGEST {
        return;
    }
    let replace = || {
        let directory = path.parent()?;
        fs::create_dir_all(directory).ok()?;
        let mut file = tempfile::NamedTempFile::new_in(directory).ok()?;
        file.write_all(&bytes).ok()?;
        file.persist(path).ok()
    };
    replace();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_the_users_own() {
        let set = |pairs: &'static [(&str, &str)]| {
            directory(move |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
        };
        assert_eq!(set(&[("MONOQUANT_CACHE_DIR", "here"), ("HOME", "/home/a")]), Some("here".into()));
        assert_eq!(set(&[("MONOQUANT_CACHE_DIR", ""), ("HOME", "/home/a")]), None);
        assert_eq!(set(&[]), None);
        if cfg!(target_os = "linux") {
            assert_eq!(set(&[("HOME", "/home/a")]), Some("/home/a/.cache/monoquant".into()));
            let both = &[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/b")];
            assert_eq!(set(both), Some("/b/monoquant".into()));
            let relative = &[("HOME", "/home/a"), ("XDG_CACHE_HOME", "b")];
            assert_eq!(set(relative), Some("/home/a/.cache/monoquant".into()));
        }
    }

    #[test]
    fn what_was_written_is_read_and_what_is_damaged_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/pipelines");
        let kept = |length: usize, pipelines: &[u32]| Kept {
            data: vec![7; length],
            pipelines: pipelines.iter().copied().collect(),
        };
        assert_eq!(read(&path), None);
        for kept in [kept(0, &[]), kept(9, &[7]), kept(0, &[1, u32::MAX]), kept(5, &[3, 9, 4])] {
            write(&path, &kept);
            assert_eq!(read(&path), Some(kept));
        }
        let whole = fs::read(&path).unwrap();
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 4;
            fs::write(&path, damaged).unwrap();
            assert_eq!(read(&path), None);
            fs::write(&path, &whole[..i]).unwrap();
            assert_eq!(read(&path), None);
        }
        // more pipelines than bytes
        let many = [1u32, 1].map(u32::to_le_bytes).concat();
        for words in [&many[..3], &many[4..]] {
            fs::write(&path, [words, &crc32fast::hash(words).to_le_bytes()].concat()).unwrap();
            assert_eq!(read(&path), None);
        }
        // too large, either way
        write(&path, &kept(LARGEST - 7, &[]));
        assert_eq!(read(&path), None);
        write(&path, &kept(LARGEST - 8, &[]));
        assert_eq!(read(&path).unwrap().data.len(), LARGEST - 8);
        fs::write(&path, [&[7][..], &fs::read(&path).unwrap()].concat()).unwrap();
        assert_eq!(read(&path), None);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        // a place where nothing can be written
        fs::write(folder.path().join("file"), b"").unwrap();
        write(&folder.path().join("file/pipelines"), &kept(3, &[]));
    }
}
