//! A small writer of zip archives: sound ones, and every lie that a test wants to tell.
#![allow(dead_code)] // each crate uses a part

/// A record, and what its headers claim.
#[derive(Clone)]
pub struct Record {
    pub name: Vec<u8>,
    pub data: Vec<u8>,
    pub method: u16,
    pub flags: u16,
    /// Compressed and uncompressed size.
    pub sizes: (u64, u64),
    /// Where the directory says that it lies, if not where it does.
    pub offset: Option<u64>,
}

/// A stored record.
pub fn record(name: &str, data: &[u8]) -> Record {
    let size = data.len() as u64;
    let (name, data) = (name.as_bytes().to_vec(), data.to_vec());
    Record { name, data, method: 0, flags: 1 << 11, sizes: (size, size), offset: None }
}

/// An archive; numbers above 32 bits go into zip64 fields.
pub fn zip(records: &[Record]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for r in records {
        let at = r.offset.unwrap_or(out.len() as u64);
        let crc = crc32fast::hash(&r.data);
        let (stored, plain) = r.sizes;
        let wide = [plain, stored, at].map(|n| n >= 0xffff_ffff);
        let short = |n: u64| n.min(0xffff_ffff) as u32;
        let name = (r.name.len() as u16).to_le_bytes();
        let mut common = [20, r.flags, r.method, 0, 0].map(u16::to_le_bytes).concat();
        common.extend([crc, short(stored), short(plain)].map(u32::to_le_bytes).concat());
        common.extend(name);
        out.extend([b"PK\x03\x04", &common[..], &[0, 0], &r.name, &r.data].concat());
        let extra: Vec<u8> = [plain, stored, at]
            .iter()
            .zip(wide)
            .filter(|(_, w)| *w)
            .flat_map(|(n, _)| n.to_le_bytes())
            .collect();
        let field = match extra.len() {
            0 => Vec::new(),
            n => [&[1, 0, n as u8, 0], &extra[..]].concat(),
        };
        directory.extend([b"PK\x01\x02\x14\0", &common[..]].concat());
        directory.extend([field.len() as u16, 0, 0, 0, 0, 0].map(u16::to_le_bytes).concat());
        directory.extend(short(at).to_le_bytes());
        directory.extend([&r.name[..], &field].concat());
    }
    let (count, start, length) = (records.len(), out.len() as u64, directory.len() as u64);
    out.extend(directory);
    out.extend(end(count as u64, length, start, out.len() as u64));
    out
}

/// The end of an archive whose directory has `count` records in `length` bytes from `start` on.
pub fn end(count: u64, length: u64, start: u64, here: u64) -> Vec<u8> {
    let mut out = Vec::new();
    if count >= 0xffff || length >= 0xffff_ffff || start >= 0xffff_ffff {
        out.extend(b"PK\x06\x06");
        out.extend(44u64.to_le_bytes());
        out.extend([45, 45, 0, 0, 0, 0].map(u16::to_le_bytes).concat());
        out.extend([count, count, length, start].map(u64::to_le_bytes).concat());
        out.extend([b"PK\x06\x07\0\0\0\0", &here.to_le_bytes()[..], &[1, 0, 0, 0]].concat());
    }
    let count = (count.min(0xffff) as u16).to_le_bytes();
    out.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count].concat());
    out.extend([length, start].map(|n| n.min(0xffff_ffff) as u32).map(u32::to_le_bytes).concat());
    out.extend([0, 0]);
    out
}

/// A sound archive of torch around a pickle: storages `0`, `1` and `2` of 16, 64 and 0 bytes.
pub fn around(pickle: &[u8]) -> Vec<u8> {
    let numbers: Vec<u8> = (0..64).collect();
    zip(&[
        record("x/data.pkl", pickle),
        record("x/byteorder", b"little"),
        record("x/data/0", &numbers[..16]),
        record("x/data/1", &numbers),
        record("x/data/2", &[]),
        record("x/version", b"3\n"),
    ])
}
