//! The zip archives that torch writes: names and places of their records. Nothing is ever decompressed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};

use rawzip::{CompressionMethod, RECOMMENDED_BUFFER_SIZE, ZipArchive};

use crate::reader::handles::read_at;

/// Records that are listed; a checkpoint has one a tensor.
const MOST: u64 = 4_000_000;
/// Bytes of their names.
const LONGEST_NAMES: usize = 256 << 20;

/// A record: offset of its data, bytes.
type Span = (u64, u64);

/// The directory of an archive, with names relative to its one folder.
pub(super) struct Archive<'a> {
    file: &'a File,
    /// Where the data lie, and whether they are compressed.
    records: HashMap<String, (Span, bool)>,
}

/// Positions of a file that `pread` reaches.
struct At<'a>(&'a File, u64);

impl rawzip::ReaderAt for At<'_> {
    fn read_at(&self, out: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let length = (out.len() as u64).min(self.1.saturating_sub(offset)) as usize;
        read_at(self.0, offset, &mut out[..length]).map(|()| length)
    }
}

impl<'a> Archive<'a> {
    /// Reads the central directory, and where the data of each record begin.
    pub fn open(file: &'a File, size: u64) -> Result<Self, String> {
        let wrong = |e: rawzip::Error| match e.kind() {
            rawzip::ErrorKind::MissingEndOfCentralDirectory => {
                "is a torch archive (zip) without its directory at the end: cut off".to_owned()
            }
            _ => format!("is a damaged torch archive (zip): {e}"),
        };
        let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
        let archive = ZipArchive::with_max_search_space(1 << 20)
            .locate_in_reader(At(file, size), &mut buffer, size)
            .map_err(|(_, e)| wrong(e))?;
        let promised = archive.entries_hint();
        let mut entries = archive.entries(&mut buffer);
        let mut listed: Vec<(String, rawzip::ZipArchiveEntryWayfinder, bool)> = Vec::new();
        let mut names = 0;
        while let Some(entry) = entries.next_entry().map_err(wrong)? {
            let name = String::from_utf8(entry.file_path().as_ref().to_vec())
                .map_err(|_| "is an archive with a name that is not UTF-8")?;
            names += name.len();
            if listed.len() as u64 >= MOST || names > LONGEST_NAMES {
                return Err(format!("is an archive of more than {MOST} records, or with too long names"));
            }
            let plain =
                entry.compression_method() == CompressionMethod::STORE && !entry.flags().is_encrypted();
            listed.push((name, entry.wayfinder(), plain));
        }
        if listed.len() as u64 != promised {
            return Err(format!(
                "is an archive that promises {promised} records and lists {}: damaged",
                listed.len()
            ));
        }
        let folder = listed.iter().find_map(|(name, ..)| {
            let (folder, file) = name.split_once('/')?;
            matches!(file, "data.pkl" | "model.json" | "archive_format").then(|| format!("{folder}/"))
        });
        let Some(folder) = folder else {
            return Err("is a zip archive, but none of torch: it has no data.pkl".into());
        };
        let mut records = HashMap::with_capacity(listed.len());
        let mut spans: Vec<(u64, u64, usize)> = Vec::with_capacity(listed.len());
        for (i, (name, way, plain)) in listed.iter().enumerate() {
            let (start, end) = archive.get_entry(*way).map_err(wrong)?.compressed_data_range();
            let lies = *plain && way.compressed_size_hint() != way.uncompressed_size_hint();
            if end > size || start > end || lies {
                return Err(format!(
                    "is an archive whose record `{name}` claims bytes {start} to {end} of {size}: cut off, or damaged"
                ));
            }
            spans.push((start, end, i));
            // A record outside of the folder is none of torch's.
            let Some(name) = name.strip_prefix(&folder) else { continue };
            if records.insert(name.to_owned(), ((start, end - start), *plain)).is_some() {
                return Err(format!("is an archive with two records `{folder}{name}`"));
            }
        }
        spans.sort_unstable();
        for pair in spans.windows(2) {
            if pair[1].0 < pair[0].1 {
                let [a, b] = [pair[0].2, pair[1].2].map(|i| &listed[i].0);
                return Err(format!("is an archive whose records `{a}` and `{b}` overlap"));
            }
        }
        Ok(Archive { file, records })
    }

    /// The place of a record, if there is one.
    pub fn get(&self, name: &str) -> Result<Option<Span>, String> {
        match self.records.get(name) {
            None => Ok(None),
            Some((span, true)) => Ok(Some(*span)),
            Some((_, false)) => Err(format!(
                "is an archive whose record `{name}` is compressed or encrypted; accepted: stored, as torch.save writes"
            )),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.records.contains_key(name)
    }

    /// Whether there is a record whose name begins so.
    pub fn has_folder(&self, prefix: &str) -> bool {
        self.records.keys().any(|name| name.starts_with(prefix))
    }

    /// Reads a record from its start on.
    pub fn reader(&self, span: Span) -> BufReader<Range<'a>> {
        BufReader::with_capacity(1 << 16, Range { file: self.file, at: span.0, end: span.0 + span.1 })
    }
}

/// A part of a file as a stream.
pub(super) struct Range<'a> {
    pub file: &'a File,
    pub at: u64,
    pub end: u64,
}

impl Read for Range<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let length = (out.len() as u64).min(self.end - self.at) as usize;
        read_at(self.file, self.at, &mut out[..length])?;
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for Range<'_> {
    /// Positions are those of the file. None lies after the end.
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        self.at = at.filter(|&at| at <= self.end).ok_or(ErrorKind::UnexpectedEof)?;
        Ok(self.at)
    }
}
