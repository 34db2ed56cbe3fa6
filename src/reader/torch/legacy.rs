//! Files of torch before 1.6: five pickles in a row, then the storages one after the other.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Seek};

use super::super::pickle::{self, Arena, Problem, Value};
use super::archive::Range;
use super::state_dict::{Found, find};
use super::{Storages, report};
use crate::error::{Error, Result};
use crate::reader::handles::read_at;

/// `0x1950a86a20f9469cfc6c`, the first pickle of a file.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;

/// Reads the pickles, and finds the place of every storage.
pub(super) fn open(path: &std::path::Path, file: &File, size: u64) -> Result<(Found, Storages)> {
    let wrong = |what: &str| report(path, Problem::Other(what.to_owned()));
    let mut input = BufReader::with_capacity(1 << 16, Range { file, at: 0, end: size });
    // the values of a pickle go before the next one's come
    let is_magic = |(arena, id): (Arena, u32)| matches!(arena.get(id), Value::Big(n) if **n == MAGIC);
    if !pickle::read(&mut input, false).map(is_magic).map_err(|e| report(path, e))? {
        return Err(wrong("is a pickle, but none that torch.save wrote"));
    }
    let mut next = |what: &str| -> Result<(Arena, u32)> {
        pickle::read(&mut input, false).map_err(|e| match e {
            Problem::Other(text) => report(path, Problem::Other(format!("{text} ({what})"))),
            e => report(path, e),
        })
    };
    let version = next("protocol version").map(|(arena, id)| arena.int(id))?;
    if version != Some(PROTOCOL) {
        return Err(wrong("is of another version of torch's old format than 1001"));
    }
    drop(next("system")?);
    let (arena, root) = next("object")?;
    let found = find(&arena, root, false).map_err(|what| wrong(&what))?;
    let elements = storages(&arena);
    drop(arena);
    let (keys, list) = next("list of storages")?;
    let mut at = input.stream_position().map_err(Error::io("read", path))?;
    let mut places = Storages::new();
    for &key in keys.items(list).unwrap_or_default() {
        let key = match keys.get(key) {
            Value::Text(key) => key.to_string(),
            Value::Int(key) => key.to_string(),
            _ => return Err(wrong("lists a storage by something that is no text")),
        };
        let Some(&(promised, elem)) = elements.get(&key) else {
            return Err(wrong(&format!("lists the storage `{key}`, which no tensor is in")));
        };
        let mut length = [0; 8];
        if at.checked_add(8).is_none_or(|end| end > size) {
            return Err(wrong(&format!("is cut off at storage `{key}`")));
        }
        read_at(file, at, &mut length).map_err(Error::io("read", path))?;
        let length = u64::from_le_bytes(length);
        let bytes = length.checked_mul(elem).filter(|&b| at + 8 <= size && b <= size - at - 8);
        let Some(bytes) = bytes.filter(|_| length == promised) else {
            return Err(wrong(&format!(
                "has storage `{key}` of {promised} elements; at its place {length} are announced, and {} bytes follow: \
                 cut off, or damaged",
                size - at - 8
            )));
        };
        if places.insert(key.clone(), (at + 8, bytes)).is_some() {
            return Err(wrong(&format!("lists the storage `{key}` twice")));
        }
        at += 8 + bytes;
    }
    Ok((found, places))
}

/// Elements and bytes an element of every storage that the object refers to, of weights or not.
fn storages(arena: &Arena) -> HashMap<String, (u64, u64)> {
    arena.persistent().filter_map(|id| super::tensors::extent(arena, id)).collect()
}
