//! GGUF files, versions 2 and 3, little-endian: key-values, tensors, and the shards of a split model.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::Header;
use crate::block::Block;
use crate::error::{Error, Result};
use crate::tensor::{Dtype, TensorInfo};

mod keys;
mod shards;
mod types;

pub use keys::Keys;
use keys::{ARRAY, Entry, STRING, size};
pub(crate) use shards::shard_name;
pub(super) use shards::{shards, split};
pub use types::{Kind, number_of};

/// What a file begins with.
pub(super) const MAGIC: &[u8] = b"GGUF";
/// Tensors begin at multiples of this, unless `general.alignment` says otherwise.
const ALIGNMENT: u64 = 32;
/// Bytes that all key-values may take together: tokenizers have some 10 MB.
const LARGEST: u64 = 100_000_000;
const MOST_KEYS: u64 = 65_536;
const MOST_TENSORS: u64 = 262_144;
const LONGEST_KEY: u64 = 65_535;
/// llama.cpp takes 63 bytes.
const LONGEST_NAME: u64 = 1024;
/// Arrays in arrays. llama.cpp writes none.
const DEEPEST: usize = 4;
/// Of a tensor, as in llama.cpp.
const MOST_DIMENSIONS: u32 = 4;
/// Bytes of the shortest key-value, tensor, string in an array, and array in an array.
const LEAST_KEY: u64 = 8 + 1 + 4 + 1;
const LEAST_TENSOR: u64 = 8 + 1 + 4 + 4 + 8;

/// The alignment that key-values state.
pub fn alignment(keys: &Keys) -> std::result::Result<u64, String> {
    match keys.bytes("general.alignment") {
        None => Ok(ALIGNMENT),
        Some(_) => match keys.number("general.alignment") {
            Some(n) if n.is_power_of_two() && n <= u64::from(u32::MAX) => Ok(n),
            Some(n) => Err(format!("general.alignment is {n}; accepted: a power of two")),
            None => Err("general.alignment is no whole number; accepted: a power of two".into()),
        },
    }
}

/// Reads and checks what comes before the tensors' data.
pub(super) fn read_header(path: &Path, file: &File, file_size: u64) -> Result<Header> {
    let mut cursor = Cursor { path, file: BufReader::with_capacity(1 << 16, file), at: 0, size: file_size };
    let mut magic = Vec::new();
    cursor.take(4, "the header", &mut magic)?;
    match cursor.u32("the header")? {
        2 | 3 => {}
        1 => return Err(cursor.wrong("is GGUF version 1, which nothing reads any more; accepted: 2 and 3")),
        n if (1..1 << 16).contains(&n.swap_bytes()) => {
            let what = format!(
                "is a big-endian GGUF file (version {}); accepted: little-endian, which gguf-py's \
                 gguf-convert-endian makes of it",
                n.swap_bytes()
            );
            return Err(cursor.wrong(what));
        }
        n => return Err(cursor.wrong(format!("is GGUF version {n}; accepted: 2 and 3"))),
    }
    let tensor_count = cursor.u64("the header")?;
    let key_count = cursor.u64("the header")?;
    if key_count > MOST_KEYS {
        return Err(cursor.wrong(format!("claims {key_count} key-values; accepted: up to {MOST_KEYS}")));
    }
    if tensor_count > MOST_TENSORS {
        return Err(cursor.wrong(format!("claims {tensor_count} tensors; accepted: up to {MOST_TENSORS}")));
    }
    cursor.fits(key_count, LEAST_KEY, "key-values")?;
    cursor.fits(tensor_count, LEAST_TENSOR, "tensors")?;
    let keys = cursor.keys(key_count)?;
    let alignment = alignment(&keys).map_err(|what| cursor.wrong(what))?;
    let mut found = Vec::new();
    for i in 0..tensor_count {
        found.push(cursor.tensor(i)?);
    }
    let mut names = HashSet::with_capacity(found.len());
    if let Some(twice) = found.iter().find(|t| !names.insert(t.info.name.as_str())) {
        return Err(cursor.wrong(format!("tensor `{}`: the name occurs twice", twice.info.name)));
    }
    drop(names);
    let start = cursor.at.next_multiple_of(alignment);
    place(&mut found, start, alignment, file_size).map_err(|what| cursor.wrong(what))?;
    let mut header = Header::default();
    if let Some(recipe) = keys.text(RECIPE) {
        header.metadata.insert("monoquant".to_owned(), recipe.to_owned());
    }
    for Found { info, offset, block } in found {
        if let Some(block) = block {
            header.blocks.insert(info.name.clone(), block);
        }
        header.tensors.push((info, start + offset, None));
    }
    header.gguf = Some(keys);
    Ok(header)
}

/// The key under which our own notes are stored. llama.cpp takes no notice of keys that it does not know.
pub const RECIPE: &str = "monoquant.recipe";

struct Found {
    info: TensorInfo,
    /// From the start of the data.
    offset: u64,
    block: Option<Block>,
}

/// Checks where tensors lie.
fn place(found: &mut [Found], start: u64, alignment: u64, file_size: u64) -> std::result::Result<(), String> {
    let mut order: Vec<usize> = (0..found.len()).collect();
    order.sort_by_key(|&i| found[i].offset);
    let mut last: Option<&Found> = None;
    for t in order.into_iter().map(|i| &found[i]) {
        let wrong = |what: String| Err(format!("tensor `{}`: {what}", t.info.name));
        if !t.offset.is_multiple_of(alignment) {
            return wrong(format!("its offset {} is no multiple of the alignment {alignment}", t.offset));
        }
        let end = t.offset.checked_add(t.info.bytes()).and_then(|end| end.checked_add(start));
        if end.is_none_or(|end| end > file_size) {
            return wrong(format!(
                "its {} bytes from byte {} of the data on reach past the end of the file, which has {} bytes of \
                 data: cut off?",
                t.info.bytes(),
                t.offset,
                file_size.saturating_sub(start)
            ));
        }
        if let Some(before) = last.filter(|before| before.offset + before.info.bytes() > t.offset) {
            return wrong(format!(
                "its data begin at byte {}, within those of `{}`, which end at {}",
                t.offset,
                before.info.name,
                before.offset + before.info.bytes()
            ));
        }
        last = Some(t);
    }
    Ok(())
}

struct Cursor<'a> {
    path: &'a Path,
    file: BufReader<&'a File>,
    at: u64,
    size: u64,
}

impl Cursor<'_> {
    fn wrong(&self, what: impl Into<String>) -> Error {
        Error::format(self.path, what.into())
    }

    /// Appends the next bytes of the file.
    fn take(&mut self, length: u64, what: &str, out: &mut Vec<u8>) -> Result<()> {
        let left = self.size - self.at;
        if length > left {
            return Err(self.wrong(format!(
                "{what} claims {length} bytes, and only {left} follow: cut off, or damaged"
            )));
        }
        let before = out.len();
        out.resize(before + length as usize, 0);
        self.file.read_exact(&mut out[before..]).map_err(Error::io("read", self.path))?;
        self.at += length;
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        if self.size - self.at < N as u64 {
            return Err(self.wrong(format!("{what} is cut off at byte {}", self.size)));
        }
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes).map_err(Error::io("read", self.path))?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Refuses a count of things that the rest of the file cannot hold.
    fn fits(&self, count: u64, least: u64, what: &str) -> Result<()> {
        let left = self.size - self.at;
        match count.checked_mul(least) {
            Some(bytes) if bytes <= left => Ok(()),
            _ => Err(self
                .wrong(format!("claims {count} {what}, and only {left} bytes follow: cut off, or damaged"))),
        }
    }

    fn text(&mut self, longest: u64, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        if length > longest {
            return Err(self.wrong(format!("{what} claims {length} bytes; accepted: up to {longest}")));
        }
        let mut bytes = Vec::new();
        self.take(length, what, &mut bytes)?;
        String::from_utf8(bytes).map_err(|e| {
            let lossy = String::from_utf8_lossy(e.as_bytes()).into_owned();
            self.wrong(format!("{what} is not UTF-8: `{lossy}`"))
        })
    }

    fn keys(&mut self, count: u64) -> Result<Keys> {
        let first = self.at;
        let mut entries: Vec<Entry> = Vec::with_capacity(count as usize);
        for i in 0..count {
            let key = self.text(LONGEST_KEY, &format!("the name of key {i}"))?;
            if key.is_empty() {
                return Err(self.wrong(format!("the name of key {i} is empty")));
            }
            let what = format!("key `{key}`");
            let kind = self.u32(&what)?;
            let mut value = Vec::new();
            self.value(kind, &what, DEEPEST, first + LARGEST, &mut value)?;
            // growing strings and arrays leave room that stays unused
            value.shrink_to_fit();
            entries.push(Entry { key, kind, value });
        }
        let mut names = HashSet::with_capacity(entries.len());
        if let Some(twice) = entries.iter().find(|e| !names.insert(e.key.as_str())) {
            return Err(self.wrong(format!("key `{}` occurs twice", twice.key)));
        }
        drop(names);
        Ok(Keys(entries))
    }

    /// Appends a value as it is stored; no key-value may end after `most`.
    fn value(&mut self, kind: u32, what: &str, depth: usize, most: u64, out: &mut Vec<u8>) -> Result<()> {
        match (kind, size(kind)) {
            (_, Some(bytes)) => self.bounded(bytes, what, most, out),
            (STRING, _) => {
                let length = self.u64(what)?;
                out.extend_from_slice(&length.to_le_bytes());
                self.bounded(length, what, most, out)
            }
            (ARRAY, _) => self.items(what, depth, most, out),
            _ => Err(self.wrong(format!("{what} has a value of type {kind}; accepted: 0 to 12"))),
        }
    }

    fn bounded(&mut self, length: u64, what: &str, most: u64, out: &mut Vec<u8>) -> Result<()> {
        if length <= self.size - self.at && self.at.saturating_add(length) > most {
            return Err(self.wrong(format!(
                "key-values take more than {LARGEST} bytes with {what}; accepted: up to that"
            )));
        }
        self.take(length, what, out)
    }

    fn items(&mut self, what: &str, depth: usize, most: u64, out: &mut Vec<u8>) -> Result<()> {
        if depth == 0 {
            return Err(self.wrong(format!("{what} has arrays in arrays; accepted: up to {DEEPEST} levels")));
        }
        let kind = self.u32(what)?;
        let count = self.u64(what)?;
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        let least = match kind {
            STRING => 8,
            ARRAY => 12,
            _ => size(kind)
                .ok_or_else(|| self.wrong(format!("{what} has values of type {kind}; accepted: 0 to 12")))?,
        };
        self.fits(count, least, &format!("values in {what}"))?;
        if size(kind).is_some() {
            return self.bounded(count * least, what, most, out);
        }
        for _ in 0..count {
            self.value(kind, what, depth - 1, most, out)?;
        }
        Ok(())
    }

    fn tensor(&mut self, number: u64) -> Result<Found> {
        let name = self.text(LONGEST_NAME, &format!("the name of tensor {number}"))?;
        if name.is_empty() {
            return Err(self.wrong(format!("the name of tensor {number} is empty")));
        }
        let what = format!("tensor `{name}`");
        let wrong = |cursor: &Self, text: String| Err(cursor.wrong(format!("{what}: {text}")));
        let count = self.u32(&what)?;
        if count > MOST_DIMENSIONS {
            return wrong(self, format!("it has {count} dimensions; accepted: up to {MOST_DIMENSIONS}"));
        }
        let mut dims = Vec::with_capacity(count as usize);
        for _ in 0..count {
            dims.push(self.u64(&what)?);
        }
        let kind = self.u32(&what)?;
        let offset = self.u64(&what)?;
        // the file names the innermost dimension first
        dims.reverse();
        if dims.contains(&0) {
            return wrong(self, format!("shape {dims:?} has no elements"));
        }
        let kind = match Kind::of(kind) {
            Ok(kind) => kind,
            Err(text) => return wrong(self, text),
        };
        let row = dims.last().copied().unwrap_or(1);
        let (dtype, block) = match kind {
            Kind::Plain(dtype) => (dtype, None),
            Kind::Blocks(block) if row.is_multiple_of(block.len() as u64) && !dims.is_empty() => {
                let bytes = (row / block.len() as u64).saturating_mul(block.bytes() as u64);
                dims.iter_mut().rev().take(1).for_each(|last| *last = bytes);
                (Dtype::U8, Some(block))
            }
            Kind::Blocks(block) => {
                return wrong(
                    self,
                    format!(
                        "rows of {row} weights are no whole blocks of {block}, which have {}",
                        block.len()
                    ),
                );
            }
        };
        let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        // as many weights as bytes must be countable, and each dimension in memory
        let counted = elements.and_then(|n| n.checked_mul(dtype.size().max(2) as u64));
        let shape: Option<Vec<usize>> = dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        match (shape, counted) {
            (Some(shape), Some(bytes)) if bytes < 1 << 60 => {
                Ok(Found { info: TensorInfo { name, dtype, shape }, offset, block })
            }
            _ => wrong(self, format!("shape {dims:?} has more bytes than can be")),
        }
    }
}
