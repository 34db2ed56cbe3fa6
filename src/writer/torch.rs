//! Layout of a `.pt` file: torch's zip archive around a state dict, the same for equal inputs.
//!
//! Byte for byte what torch's writer (miniz, `mz_zip_writer_add_mem_ex_v2`) makes of the same records: `torch.load` can
//! be told to work out where data lie instead of reading it, and then relies on this.

use std::collections::{BTreeMap, HashSet};

use crate::tensor::TensorInfo;

mod pickle;
#[cfg(test)]
mod tests;

/// Tensor data begin at a multiple of this, as torch has it. The archive says so in `.storage_alignment`.
const ALIGNMENT: u64 = 64;
/// From here on, sizes and offsets go into zip64 fields.
const ZIP64: u64 = 0xffff_ffff;
/// General-purpose flags: names are UTF-8; CRC and sizes follow the data.
const UTF8: u16 = 1 << 11;
const DESCRIPTOR: u16 = 1 << 3;
/// Zip64 end record, its locator, and the end record.
const END: u64 = 56 + 20 + 22;
/// Decimal digits in the serialization id: two numbers of 64 bits.
const ID_DIGITS: usize = 40;

/// Bytes and the absolute offset where they belong.
type Piece = (u64, Vec<u8>);

/// An archive laid out. Every byte is in `fixed`, in `spans` or in what [`Archive::closing`] returns, once.
#[derive(Debug)]
pub(super) struct Archive {
    /// What is known at once: headers and small records, by offset.
    pub fixed: Vec<Piece>,
    /// Absolute offset and byte length of every tensor's data, in the order of `tensors`.
    pub spans: Vec<(u64, u64)>,
    /// Bytes of the whole file.
    pub size: u64,
    records: Vec<Record>,
}

/// A file in the archive.
#[derive(Debug)]
struct Record {
    name: String,
    content: Content,
    /// Offset of the local header.
    header: u64,
    /// Offset of the data.
    data: u64,
    size: u64,
}

#[derive(Debug, Clone, Copy)]
enum Content {
    /// Bytes with this CRC-32.
    Known(u32),
    /// Data of the tensor with this index.
    Tensor(usize),
    /// The serialization id, which depends on every CRC-32.
    Id,
}

/// Lays out a state dict as `torch.save` does, or says why it cannot be stored.
///
/// `folder` is the folder in the archive that everything is in: torch takes the file's name without its extension, or
/// `archive` if that is not ASCII.
/// `entries` are the keys of the state dict in order, each with the index of its tensor; keys may share a tensor, which
/// is then stored once. Every tensor needs a key. `attributes` become attributes of the `OrderedDict`.
pub(super) fn place(
    folder: &str,
    tensors: &[TensorInfo],
    entries: &[(String, usize)],
    attributes: &BTreeMap<String, String>,
) -> Result<Archive, String> {
    // miniz's headers make unzip take a name that is not ASCII for a mismatch.
    if matches!(folder, "" | "." | "..") || !folder.is_ascii() || folder.contains(['/', '\\', '\0']) {
        return Err(format!("`{folder}` cannot be the name of the folder in the archive"));
    }
    let mut lengths = Vec::with_capacity(tensors.len());
    for t in tensors {
        lengths.push(length(t).ok_or_else(|| format!("tensor `{}` is too large", t.name))?);
    }
    // Storages are numbered in the order in which the keys name them.
    let (mut order, mut storages) = (Vec::new(), vec![None; tensors.len()]);
    let (mut keys, mut items) = (HashSet::new(), Vec::with_capacity(entries.len()));
    for (key, tensor) in entries {
        if !keys.insert(key) {
            return Err(format!("tensor `{key}`: the name is taken"));
        }
        let storage = storages.get_mut(*tensor);
        let storage = storage.ok_or_else(|| format!("internal error: no tensor for `{key}`"))?;
        let storage = *storage.get_or_insert_with(|| {
            order.push(*tensor);
            order.len() - 1
        });
        items.push((key.as_str(), storage, &tensors[*tensor]));
    }
    if let Some(unused) = storages.iter().position(Option::is_none) {
        return Err(format!("internal error: tensor `{}` has no key", tensors[unused].name));
    }
    let mut texts = entries.iter().map(|(key, _)| key).chain(attributes.iter().flat_map(|(k, v)| [k, v]));
    if texts.any(|text| text.len() as u64 > u64::from(u32::MAX)) {
        return Err("a name is too long".into());
    }
    let pickle = pickle::state_dict(&items, attributes);

    let mut layout = Layout { folder, fixed: Vec::new(), records: Vec::new(), end: 0 };
    layout.add_known("data.pkl", &pickle)?;
    layout.add_known(".format_version", b"1")?;
    layout.add_known(".storage_alignment", ALIGNMENT.to_string().as_bytes())?;
    layout.add_known("byteorder", b"little")?;
    let mut spans = vec![(0, 0); tensors.len()];
    for (storage, &tensor) in order.iter().enumerate() {
        let length = lengths[tensor];
        spans[tensor] = (layout.add(format!("data/{storage}"), length, Content::Tensor(tensor))?, length);
    }
    layout.add_known("version", b"3\n")?;
    layout.add(".data/serialization_id".into(), ID_DIGITS as u64, Content::Id)?;
    let Layout { fixed, records, end, .. } = layout;
    let directory = records.iter().map(|r| 46 + (r.name.len() + r.zip64(r.size).len()) as u64).sum::<u64>();
    if directory >= ZIP64 {
        return Err(format!("{} tensors are too many for one archive", tensors.len()));
    }
    Ok(Archive { fixed, spans, size: end + directory + END, records })
}

impl Archive {
    /// What remains when the CRC-32 of every tensor's data is known: data descriptors, the serialization id, the
    /// central directory and the end records.
    pub fn closing(&self, crcs: &[u32]) -> Vec<Piece> {
        assert_eq!(crcs.len(), self.spans.len(), "a CRC for every tensor");
        let id = self.id(crcs);
        let (mut pieces, mut directory) = (Vec::new(), Vec::new());
        let mut end = 0;
        for record in &self.records {
            let crc = match record.content {
                Content::Known(crc) => crc,
                Content::Tensor(tensor) => crcs[tensor],
                Content::Id => crc32fast::hash(id.as_bytes()),
            };
            if let Content::Id = record.content {
                put(&mut pieces, record.data, id.as_bytes());
            }
            let descriptor = record.descriptor(crc);
            if !matches!(record.content, Content::Known(_)) {
                put(&mut pieces, record.data + record.size, &descriptor);
            }
            end = record.data + record.size + descriptor.len() as u64;
            directory.extend(record.central_header(crc));
        }

        let (count, length) = (self.records.len() as u64, directory.len() as u64);
        // Version made by, version needed: what miniz writes.
        directory.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x1e\x03\x2d\0\0\0\0\0\0\0\0\0");
        directory.extend([count, count, length, end].map(u64::to_le_bytes).as_flattened());
        directory.extend(b"PK\x06\x07\0\0\0\0");
        directory.extend((end + length).to_le_bytes());
        directory.extend(1u32.to_le_bytes());
        directory.extend(b"PK\x05\x06\0\0\0\0");
        let count = (count.min(0xffff) as u16).to_le_bytes();
        directory.extend([count, count].as_flattened());
        directory.extend([length, end].map(low).as_flattened());
        directory.extend([0; 2]);
        put(&mut pieces, end, &directory);
        pieces
    }

    /// As torch's: a fingerprint of the names, then one of the data. For the names, torch's depends on its C++ library.
    fn id(&self, crcs: &[u32]) -> String {
        let combine = |seed: u64, value: u32| {
            let mixed = u64::from(value).wrapping_add(0x9e37_79b9).wrapping_add(seed << 6);
            seed ^ mixed.wrapping_add(seed >> 2)
        };
        let (mut names, mut data) = (0, 0);
        for record in &self.records {
            names = combine(names, crc32fast::hash(record.name.as_bytes()));
            data = match record.content {
                Content::Known(crc) => combine(data, crc),
                Content::Tensor(tensor) if record.size > 0 => combine(data, crcs[tensor]),
                _ => data,
            };
        }
        format!("{names:020}{data:020}")
    }
}

/// An archive in the making.
struct Layout<'a> {
    folder: &'a str,
    fixed: Vec<Piece>,
    records: Vec<Record>,
    /// Where the next record goes.
    end: u64,
}

impl Layout<'_> {
    /// Places a record and its header; the data begin at the offset returned.
    fn add(&mut self, name: String, size: u64, content: Content) -> Result<u64, String> {
        let name = format!("{}/{name}", self.folder);
        if name.len() > usize::from(u16::MAX) {
            return Err("the name of the folder in the archive is too long".into());
        }
        let mut record = Record { name, content, header: self.end, data: 0, size };
        let header = record.local_header();
        record.data = self.end + header.len() as u64;
        let end = record.data.checked_add(size).map(|end| end + record.descriptor(0).len() as u64);
        // No file is longer, and sums with small numbers cannot overflow.
        self.end = end.filter(|&end| end <= i64::MAX as u64).ok_or("the file would be too large")?;
        put(&mut self.fixed, record.header, &header);
        let data = record.data;
        self.records.push(record);
        Ok(data)
    }

    fn add_known(&mut self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let crc = crc32fast::hash(bytes);
        let data = self.add(name.into(), bytes.len() as u64, Content::Known(crc))?;
        put(&mut self.fixed, data, bytes);
        let descriptor = self.records[self.records.len() - 1].descriptor(crc);
        put(&mut self.fixed, data + bytes.len() as u64, &descriptor);
        Ok(())
    }
}

impl Record {
    /// The header before the data, with as much padding as aligns them. Its sizes are zero: the descriptor has them.
    fn local_header(&self) -> Vec<u8> {
        let mut header = b"PK\x03\x04".to_vec();
        // miniz does not know the stored size yet when it writes this field.
        let zip64 = self.zip64(0);
        let unpadded = self.header + 30 + (self.name.len() + zip64.len()) as u64 + 4;
        let padding = unpadded.next_multiple_of(ALIGNMENT) - unpadded;
        self.common(&mut header, 0, 0, zip64.len() + 4 + padding as usize);
        header.extend(self.name.as_bytes());
        header.extend(zip64);
        header.extend(b"FB");
        header.extend((padding as u16).to_le_bytes());
        header.resize(header.len() + padding as usize, b'Z');
        header
    }

    fn central_header(&self, crc: u32) -> Vec<u8> {
        let mut header = b"PK\x01\x02\0\0".to_vec();
        let zip64 = self.zip64(self.size);
        self.common(&mut header, crc, self.size, zip64.len());
        // No comment, disk 0, no attributes.
        header.extend([0; 10]);
        header.extend(low(self.header));
        header.extend(self.name.as_bytes());
        header.extend(zip64);
        header
    }

    /// The fields that both headers have: version, flags, method, time, CRC, sizes and the lengths of what follows.
    fn common(&self, header: &mut Vec<u8>, crc: u32, size: u64, extra: usize) {
        let flags = if self.size > 0 { UTF8 | DESCRIPTOR } else { UTF8 };
        header.extend([0, flags, 0, 0, 0].map(u16::to_le_bytes).as_flattened());
        header.extend(crc.to_le_bytes());
        header.extend([size, size].map(low).as_flattened());
        header.extend([self.name.len() as u16, extra as u16].map(u16::to_le_bytes).as_flattened());
    }

    /// What follows the data, unless there are none.
    fn descriptor(&self, crc: u32) -> Vec<u8> {
        let mut descriptor = Vec::new();
        if self.size > 0 {
            descriptor.extend(b"PK\x07\x08");
            descriptor.extend(crc.to_le_bytes());
            if self.zip64(0).is_empty() {
                descriptor.extend([self.size, self.size].map(low).as_flattened());
            } else {
                descriptor.extend([self.size, self.size].map(u64::to_le_bytes).as_flattened());
            }
        }
        descriptor
    }

    /// The extra field for numbers that do not fit into 32 bits, empty if all do.
    fn zip64(&self, stored: u64) -> Vec<u8> {
        let mut numbers = Vec::new();
        if self.size >= ZIP64 {
            numbers.extend([self.size, stored]);
        }
        if self.header >= ZIP64 {
            numbers.push(self.header);
        }
        if numbers.is_empty() {
            return Vec::new();
        }
        let mut field = vec![1, 0, 8 * numbers.len() as u8, 0];
        field.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
        field
    }
}

/// Bytes of a tensor, if it and its strides can be counted as torch does, in `i64`.
fn length(tensor: &TensorInfo) -> Option<u64> {
    let mut dims = tensor.shape.iter();
    let span = dims.try_fold(1i64, |span, &d| span.checked_mul(i64::try_from(d).ok()?.max(1)))?;
    let elements = if tensor.shape.contains(&0) { 0 } else { span };
    elements.checked_mul(tensor.dtype.size() as i64).map(|bytes| bytes as u64)
}

/// Appends to the last piece where that ends here.
fn put(pieces: &mut Vec<Piece>, at: u64, bytes: &[u8]) {
    match pieces.last_mut() {
        _ if bytes.is_empty() => {}
        Some((start, last)) if *start + last.len() as u64 == at => last.extend(bytes),
        _ => pieces.push((at, bytes.to_vec())),
    }
}

/// A 32-bit field, which says that a zip64 field has the number if it is too large.
fn low(number: u64) -> [u8; 4] {
    (number.min(ZIP64) as u32).to_le_bytes()
}
