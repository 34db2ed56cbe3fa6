//! Headers of safetensors files, checked so that nothing behind them can surprise.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::Header;
use super::json::{LARGEST, Unique};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, TensorInfo};

#[cfg(test)]
mod tests;

/// Dtypes that the format knows and monoquant does not.
const FOREIGN: [&str; 3] = ["F4", "F6_E2M3", "F6_E3M2"];

/// Reads and checks the header of a safetensors file. Memory stays within a small multiple of the header.
pub(super) fn read_header(path: &Path) -> Result<Header> {
    let wrong = |what: String| Error::format(path, what);
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    if size < 8 {
        return Err(wrong(match size {
            0 => "is empty; accepted: a safetensors file".into(),
            _ => format!("has {size} bytes; a safetensors file begins with an 8-byte length"),
        }));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(Error::io("read", path))?;
    let length = u64::from_le_bytes(length);
    if length > size - 8 {
        return Err(wrong(format!(
            "the header claims {length} bytes, and only {} follow: cut off, or not a safetensors file",
            size - 8
        )));
    }
    if length > LARGEST {
        return Err(wrong(format!("the header claims {length} bytes; accepted: up to {LARGEST}")));
    }
    let mut first = [0];
    if length > 0 {
        file.read_exact(&mut first).map_err(Error::io("read", path))?;
    }
    if first != *b"{" {
        return Err(wrong("the header is not a JSON object: it does not begin with `{`".into()));
    }
    let mut header = vec![b'{'; length as usize];
    file.read_exact(&mut header[1..]).map_err(Error::io("read", path))?;
    let text = str::from_utf8(&header).map_err(|e| wrong(format!("the header is not UTF-8: {e}")))?;
    let Unique(entries) = serde_json::from_str::<Unique<Entry>>(text)
        .map_err(|e| wrong(format!("the header is not as safetensors prescribes: {e}")))?;
    check(entries, 8 + length, size - 8 - length).map_err(wrong)
}

/// The value of one key of the header: `__metadata__` is told apart from a tensor by its name only, so both are parsed
/// from the same fields, and anything that is neither is kept out by [`check`].
#[derive(Debug)]
enum Entry {
    Nothing,
    Object(Vec<(String, Field)>),
}

#[derive(Debug)]
enum Field {
    Text(String),
    Numbers(Vec<u64>),
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let object = Option::<Unique<Field>>::deserialize(deserializer)?;
        Ok(object.map_or(Entry::Nothing, |Unique(fields)| Entry::Object(fields)))
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct FieldVisitor;

        impl<'de> de::Visitor<'de> for FieldVisitor {
            type Value = Field;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string, or an array of whole numbers from 0 to 2^64 - 1")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Field, E> {
                Ok(Field::Text(text.to_owned()))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Field, A::Error> {
                let mut numbers = Vec::new();
                while let Some(n) = items.next_element()? {
                    numbers.push(n);
                }
                Ok(Field::Numbers(numbers))
            }
        }

        deserializer.deserialize_any(FieldVisitor)
    }
}

/// Turns the parsed header into tensors, or says what is wrong with it.
fn check(entries: Vec<(String, Entry)>, data_start: u64, data: u64) -> std::result::Result<Header, String> {
    let mut metadata = BTreeMap::new();
    let mut spans: Vec<(u64, u64, TensorInfo)> = Vec::new();
    for (name, entry) in entries {
        match (name.as_str(), entry) {
            ("__metadata__", Entry::Nothing) => {}
            ("__metadata__", Entry::Object(fields)) => {
                for (key, value) in fields {
                    let Field::Text(value) = value else {
                        return Err(format!("`__metadata__`: the value of `{key}` is no string"));
                    };
                    metadata.insert(key, value);
                }
            }
            (_, Entry::Nothing) => {
                return Err(format!("tensor `{name}`: null instead of an object"));
            }
            (_, Entry::Object(fields)) => {
                let (begin, end, info) =
                    tensor(&name, fields).map_err(|what| format!("tensor `{name}`: {what}"))?;
                if end > data {
                    return Err(format!(
                        "tensor `{name}`: its data end at byte {end}, and the file holds {data} bytes of data: cut off?"
                    ));
                }
                spans.push((begin, end, info));
            }
        }
    }

    spans.sort_by(|a, b| (a.0, a.1, &a.2.name).cmp(&(b.0, b.1, &b.2.name)));
    let mut covered = 0;
    let mut last = "the header";
    for (begin, end, info) in &spans {
        let name = &info.name;
        if *begin < covered {
            return Err(format!("tensor `{name}`: its data begin at byte {begin}, within those of {last}"));
        }
        if *begin > covered {
            return Err(format!(
                "tensor `{name}`: its data begin at byte {begin}, and those of {last} end at {covered}; safetensors allows no holes"
            ));
        }
        covered = *end;
        last = name;
    }
    if covered != data {
        return Err(format!("{} bytes follow the last tensor; safetensors allows none", data - covered));
    }
    let tensors = spans.into_iter().map(|(begin, _, info)| (info, data_start + begin, None)).collect();
    Ok(Header { tensors, metadata, ..Header::default() })
}

/// One tensor of the header with the begin and end of its data.
fn tensor(name: &str, fields: Vec<(String, Field)>) -> std::result::Result<(u64, u64, TensorInfo), String> {
    let (mut dtype, mut shape, mut offsets) = (None, None, None);
    for (key, value) in fields {
        match (key.as_str(), value) {
            ("dtype", Field::Text(text)) => dtype = Some(text),
            ("shape", Field::Numbers(numbers)) => shape = Some(numbers),
            ("data_offsets", Field::Numbers(numbers)) => offsets = Some(numbers),
            ("dtype", _) => return Err("`dtype` is no string".into()),
            ("shape" | "data_offsets", _) => return Err(format!("`{key}` is no array of numbers")),
            // Fields that the format does not know yet are no concern of ours.
            _ => {}
        }
    }
    let missing = |key: &str| format!("`{key}` is missing");
    let dtype = dtype.ok_or_else(|| missing("dtype"))?;
    let shape = shape.ok_or_else(|| missing("shape"))?;
    let offsets = offsets.ok_or_else(|| missing("data_offsets"))?;

    let dtype = Dtype::from_name(&dtype).filter(|d| d.in_safetensors()).ok_or_else(|| {
        let accepted = Dtype::ALL.into_iter().filter(|d| d.in_safetensors()).map(Dtype::name);
        let accepted = accepted.collect::<Vec<_>>().join(", ");
        match FOREIGN.contains(&dtype.as_str()) {
            true => format!("dtype {dtype} is not supported; accepted: {accepted}"),
            false => format!("dtype `{dtype}` is unknown; accepted: {accepted}"),
        }
    })?;
    // numpy and torch have tensors of up to 64 dimensions
    if shape.len() > 64 {
        return Err(format!("it has {} dimensions; accepted: up to 64", shape.len()));
    }
    let &[begin, end] = offsets.as_slice() else {
        return Err(format!("`data_offsets` has {} numbers instead of 2", offsets.len()));
    };
    let length = end
        .checked_sub(begin)
        .ok_or_else(|| format!("its data begin at byte {begin}, after their end at {end}"))?;
    // Multiplied in the order of `TensorInfo::elements`, so that what passes here cannot overflow there.
    let bytes = shape
        .iter()
        .try_fold(1u64, |n, &d| n.checked_mul(d))
        .and_then(|n| n.checked_mul(dtype.size() as u64))
        .ok_or_else(|| format!("shape {shape:?} has more bytes than 64 bits can count"))?;
    if bytes != length {
        return Err(format!(
            "shape {shape:?} of {dtype} takes {bytes} bytes, and `data_offsets` spans {length}"
        ));
    }
    let shape: Option<Vec<usize>> = shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let shape = shape.ok_or_else(|| "its shape is too large for this machine".to_string())?;
    Ok((begin, end, TensorInfo { name: name.to_owned(), dtype, shape }))
}
