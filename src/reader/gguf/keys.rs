//! GGUF's key-values: kept as they are, so that they can be written again byte for byte.

/// Types of values, by their numbers.
pub(super) const STRING: u32 = 8;
pub(super) const ARRAY: u32 = 9;
const U32: u32 = 4;

/// Bytes of a value of this type, if all have the same number.
pub(super) fn size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// The key-values of a GGUF file, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys(pub(super) Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub key: String,
    pub kind: u32,
    /// As stored: little-endian, strings and arrays with their lengths in front.
    pub value: Vec<u8>,
}

impl Keys {
    /// Names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|e| e.key.as_str())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        self.0.iter().find(|e| e.key == key)
    }

    /// A value as stored.
    pub fn bytes(&self, key: &str) -> Option<&[u8]> {
        self.entry(key).map(|e| e.value.as_slice())
    }

    /// A whole number that is not negative, of any width; of an array, its first element.
    pub fn number(&self, key: &str) -> Option<u64> {
        let Entry { kind, value, .. } = self.entry(key)?;
        match (*kind, value.as_slice()) {
            (ARRAY, [a, b, c, d, rest @ ..]) => integer(u32::from_le_bytes([*a, *b, *c, *d]), rest.get(8..)?),
            (kind, value) => integer(kind, value),
        }
    }

    /// A string.
    pub fn text(&self, key: &str) -> Option<&str> {
        let entry = self.entry(key).filter(|e| e.kind == STRING)?;
        std::str::from_utf8(entry.value.get(8..)?).ok()
    }

    /// Sets a number of 32 bits: in its place if the key is there, else at the end.
    pub fn set_number(&mut self, key: &str, number: u32) {
        self.set(key, U32, number.to_le_bytes().to_vec());
    }

    /// Sets a string in the same way.
    pub fn set_text(&mut self, key: &str, text: &str) {
        self.set(key, STRING, [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat());
    }

    fn set(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        match self.0.iter_mut().find(|e| e.key == key) {
            Some(entry) => (entry.kind, entry.value) = (kind, value),
            None => self.0.push(Entry { key: key.to_owned(), kind, value }),
        }
    }

    /// Takes off every key that begins so.
    pub fn remove(&mut self, prefix: &str) {
        self.0.retain(|e| !e.key.starts_with(prefix));
    }

    /// The key-values as a file holds them.
    pub fn write(&self, out: &mut Vec<u8>) {
        for Entry { key, kind, value } in &self.0 {
            out.extend_from_slice(&(key.len() as u64).to_le_bytes());
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(&kind.to_le_bytes());
            out.extend_from_slice(value);
        }
    }
}

fn integer(kind: u32, bytes: &[u8]) -> Option<u64> {
    let length = size(kind).filter(|_| !matches!(kind, 6 | 7 | 12))? as usize;
    let mut word = [0; 8];
    word[..length].copy_from_slice(bytes.get(..length)?);
    let negative = matches!(kind, 1 | 3 | 5 | 11) && word[length - 1] & 0x80 != 0;
    (!negative).then_some(u64::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_width() {
        let mut keys = Keys::default();
        for (kind, value, number) in [
            (0, vec![200], Some(200)),
            (1, vec![200], None),
            (3, vec![1, 0], Some(1)),
            (5, vec![0xff; 4], None),
            (10, vec![1, 0, 0, 0, 1, 0, 0, 0], Some(1 << 32 | 1)),
            (6, vec![0; 4], None),
            (ARRAY, [&[4, 0, 0, 0][..], &[1, 0, 0, 0, 0, 0, 0, 0], &[9, 0, 0, 0]].concat(), Some(9)),
            (ARRAY, [&[4, 0, 0, 0][..], &[0; 8]].concat(), None),
        ] {
            keys.set("n", kind, value);
            assert_eq!(keys.number("n"), number, "{kind}");
        }
    }

    #[test]
    fn what_is_set_takes_its_old_place() {
        let mut keys = Keys::default();
        keys.set_text("a", "x");
        keys.set_number("b", 1);
        keys.set_number("split.no", 1);
        keys.set_text("a", "yz");
        keys.remove("split.");
        assert_eq!(keys.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((keys.text("a"), keys.number("b"), keys.text("b")), (Some("yz"), Some(1), None));
        let mut bytes = Vec::new();
        keys.write(&mut bytes);
        assert_eq!(bytes.len(), 9 + 4 + 10 + 9 + 4 + 4);
    }
}
