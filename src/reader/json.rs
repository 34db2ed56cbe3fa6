//! JSON objects whose keys may occur only once, and files that are read only up to a bound.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use crate::error::{Error, Result};

/// No JSON file that belongs to a checkpoint is larger than this; the bound keeps a hostile one from filling memory.
pub(super) const LARGEST: u64 = 100_000_000;

/// Keys that are compared with one another rather than looked up.
const FEW: usize = 8;

/// The entries of a JSON object in the order of the file. A repeated key is an error.
///
/// serde_json would keep the last of two equal keys, and so hide that the file contradicts itself.
#[derive(Debug)]
pub(super) struct Unique<V>(pub Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Unique<V>, A::Error> {
                let mut seen = HashSet::new();
                let mut entries: Vec<(String, V)> = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    // a tensor's few fields are compared one by one: a set takes longer to make
                    let repeated = if entries.len() < FEW {
                        entries.iter().any(|(other, _)| *other == key)
                    } else {
                        if seen.is_empty() {
                            seen.extend(entries.iter().map(|(other, _)| other.clone()));
                        }
                        !seen.insert(key.clone())
                    };
                    if repeated {
                        return Err(de::Error::custom(format!("`{key}` occurs twice")));
                    }
                    let value = map.next_value().map_err(|e| de::Error::custom(format!("`{key}`: {e}")))?;
                    entries.push((key, value));
                }
                Ok(Unique(entries))
            }
        }

        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// Reads and parses a small JSON file.
pub(crate) fn read<T: de::DeserializeOwned>(path: &Path) -> Result<T> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > LARGEST {
        return Err(Error::format(path, format!("is larger than {LARGEST} bytes")));
    }
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::format(path, format!("is not the JSON expected here: {e}")))
}
