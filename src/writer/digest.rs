//! SHA-256: of bytes, of what is formatted, of files while they grow.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::reader::handles::read_at;

/// A file of the output, complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenFile {
    /// Its path within an output directory, with `/`; else its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: String,
}

/// The SHA-256 of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(Sha256::digest(bytes).as_slice())
}

/// The SHA-256 of what is formatted into it.
#[derive(Default)]
pub(crate) struct Formatted(Sha256);

impl Formatted {
    /// The digest.
    pub fn digest(self) -> String {
        hexadecimal(self.0.finalize().as_slice())
    }
}

impl fmt::Write for Formatted {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

/// The SHA-256 of a file, of which more and more is there.
pub(super) struct Growing {
    file: File,
    hasher: Sha256,
    at: u64,
    buffer: Vec<u8>,
}

/// Bytes that are read at once: they stay in a core's cache until they are hashed.
const PART: usize = 256 << 10;
/// Parts that are read ahead.
const AHEAD: usize = 4;

impl Growing {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Growing { file, hasher: Sha256::new(), at: 0, buffer: vec![0; PART] })
    }

    /// Takes up bytes before `end`, which no longer change, at most so many; how many are left.
    pub fn advance(&mut self, end: u64, most: u64) -> io::Result<u64> {
        let stop = end.min(self.at.saturating_add(most));
        while self.at < stop {
            let part = &mut self.buffer[..PART.min((stop - self.at) as usize)];
            read_at(&self.file, self.at, part)?;
            self.hasher.update(&*part);
            self.at += part.len() as u64;
        }
        Ok(end.saturating_sub(self.at))
    }

    /// Takes up the rest: size and digest.
    pub fn finish(mut self) -> io::Result<(u64, String)> {
        let bytes = self.file.metadata()?.len();
        self.rest(bytes)?;
        Ok((bytes, hexadecimal(self.hasher.finalize().as_slice())))
    }

    /// Takes up the bytes before `end`; another thread reads ahead, as that costs nearly half of the hashing.
    fn rest(&mut self, end: u64) -> io::Result<()> {
        if end.saturating_sub(self.at) <= 8 * PART as u64 {
            return self.advance(end, u64::MAX).map(drop);
        }
        let Growing { file, hasher, at, .. } = self;
        let (full, fulls) = mpsc::sync_channel::<Vec<u8>>(AHEAD);
        let (empty, empties) = mpsc::sync_channel(AHEAD);
        let read = thread::scope(|scope| {
            let (start, file) = (*at, &*file);
            let reading = thread::Builder::new().spawn_scoped(scope, move || {
                let mut at = start;
                while at < end {
                    let mut part = empties.try_recv().unwrap_or_else(|_| vec![0; PART]);
                    part.resize(PART.min((end - at) as usize), 0);
                    read_at(file, at, &mut part)?;
                    at += part.len() as u64;
                    if full.send(part).is_err() {
                        break;
                    }
                }
                Ok(())
            });
            let reading = reading.ok()?;
            for part in fulls {
                hasher.update(&part);
                *at += part.len() as u64;
                let _ = empty.try_send(part);
            }
            Some(reading.join().unwrap_or_else(|_| Err(io::Error::other("internal error: a thread failed"))))
        });
        // where no thread may be started, one does it all
        read.unwrap_or_else(|| self.advance(end, u64::MAX).map(drop))
    }
}

/// Size and SHA-256 of a file.
pub(crate) fn of_file(path: &Path) -> io::Result<(u64, String)> {
    Growing::open(path)?.finish()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of FIPS 180-2.
    #[test]
    fn digests_are_those_of_the_standard() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), abc);
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let mut formatted = Formatted::default();
        fmt::Write::write_fmt(&mut formatted, format_args!("{}{}", 'a', "bc")).unwrap();
        assert_eq!(formatted.digest(), abc);
    }

    #[test]
    fn a_file_that_grows_has_the_digest_of_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        // read in one go, and ahead
        for words in [PART as u32 * 2 / 3, PART as u32 * 5 + 3] {
            let bytes: Vec<u8> = (0..words).flat_map(u32::to_le_bytes).collect();
            std::fs::write(&path, &bytes).unwrap();
            let mut growing = Growing::open(&path).unwrap();
            for (end, most) in [(0, 9), (1, 9), (1, 9), (70_000, u64::MAX), (PART as u64 + 7, 70_000)] {
                growing.advance(end, most).unwrap();
            }
            assert_eq!(growing.advance(PART as u64 + 7, 0).unwrap(), PART as u64 - 70_000 - 70_000 + 7);
            assert_eq!(growing.finish().unwrap(), (bytes.len() as u64, sha256(&bytes)));
            assert_eq!(of_file(&path).unwrap().1, sha256(&bytes));
        }
    }
}
