//! The CRC-32 of a tensor whose parts are written in any order.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crc32fast::Hasher;

/// Parts written so far, neighbours joined: start → bytes and CRC.
#[derive(Debug, Default)]
pub(super) struct Checksum(Mutex<BTreeMap<u64, (u64, u32)>>);

impl Checksum {
    /// Takes up a part.
    pub fn add(&self, start: u64, bytes: &[u8]) {
        let mut part = (start, bytes.len() as u64, crc32fast::hash(bytes));
        if part.1 == 0 {
            return;
        }
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((&before, &(length, crc))) = parts.range(..start).next_back()
            && before + length == start
        {
            parts.remove(&before);
            part = (before, length + part.1, joined((crc, length), (part.2, part.1)));
        }
        if let Some((length, crc)) = parts.remove(&(part.0 + part.1)) {
            part = (part.0, part.1 + length, joined((part.2, part.1), (crc, length)));
        }
        parts.insert(part.0, (part.1, part.2));
    }

    /// The CRC of all bytes, if every one of them was taken up.
    pub fn whole(&self, bytes: u64) -> Option<u32> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match parts.get(&0) {
            _ if bytes == 0 => Some(0),
            Some(&(length, crc)) if length == bytes => Some(crc),
            _ => None,
        }
    }
}

fn joined(first: (u32, u64), second: (u32, u64)) -> u32 {
    let mut hasher = Hasher::new_with_initial_len(first.0, first.1);
    hasher.combine(&Hasher::new_with_initial_len(second.0, second.1));
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_in_any_order_make_the_crc_of_the_whole() {
        let data: Vec<u8> = (0..1000u32).flat_map(|i| i.to_le_bytes()).collect();
        let checksum = Checksum::default();
        for start in [3000, 0, 1000, 2000] {
            assert_eq!(checksum.whole(4000), None);
            checksum.add(start, &data[start as usize..][..1000]);
        }
        assert_eq!(checksum.whole(4000), Some(crc32fast::hash(&data)));
        assert_eq!(Checksum::default().whole(0), Some(0));
    }
}
