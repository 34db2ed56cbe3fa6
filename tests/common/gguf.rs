//! GGUF files, written by hand.
#![allow(dead_code)] // each test crate uses a part

pub type Bytes = Vec<u8>;

/// Types of values.
pub const U16: u32 = 2;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;

/// Types of tensors.
pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q4_0: u32 = 2;
pub const Q8_0: u32 = 8;
pub const Q4_K: u32 = 12;
pub const BF16: u32 = 30;

/// A tensor: name, dimensions with the innermost first, type, bytes; the offset, if it is not where it should be.
#[derive(Clone)]
pub struct Tensor {
    pub name: Bytes,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub data: Bytes,
    pub offset: Option<u64>,
}

/// A file; counts are what follows, unless they are said.
#[derive(Clone)]
pub struct Gguf {
    pub version: u32,
    pub keys: Vec<Bytes>,
    pub tensors: Vec<Tensor>,
    pub alignment: usize,
    pub counts: (Option<u64>, Option<u64>),
}

pub fn text(text: &[u8]) -> Bytes {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

pub fn array(kind: u32, count: u64, items: &[u8]) -> Bytes {
    [&kind.to_le_bytes(), &count.to_le_bytes()[..], items].concat()
}

/// A key-value.
pub fn key(name: &str, kind: u32, value: &[u8]) -> Bytes {
    [&text(name.as_bytes()), &kind.to_le_bytes()[..], value].concat()
}

pub fn number(name: &str, value: u32) -> Bytes {
    key(name, U32, &value.to_le_bytes())
}

/// A string.
pub fn string(name: &str, value: &str) -> Bytes {
    key(name, STRING, &text(value.as_bytes()))
}

/// Strings.
pub fn strings(name: &str, values: &[&str]) -> Bytes {
    let items: Bytes = values.iter().flat_map(|v| text(v.as_bytes())).collect();
    key(name, ARRAY, &array(STRING, values.len() as u64, &items))
}

pub fn tensor(name: &str, dims: &[u64], kind: u32, data: &[u8]) -> Tensor {
    Tensor { name: name.into(), dims: dims.to_vec(), kind, data: data.to_vec(), offset: None }
}

impl Gguf {
    pub fn new(keys: &[Bytes], tensors: &[Tensor]) -> Self {
        let (keys, tensors) = (keys.to_vec(), tensors.to_vec());
        Gguf { version: 3, keys, tensors, alignment: 32, counts: (None, None) }
    }

    /// What comes before the data.
    pub fn head(&self) -> Bytes {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.counts.0.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.counts.1.unwrap_or(self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        let mut next = 0;
        for t in &self.tensors {
            out.extend(text(&t.name));
            out.extend((t.dims.len() as u32).to_le_bytes());
            out.extend(t.dims.iter().flat_map(|d| d.to_le_bytes()));
            out.extend(t.kind.to_le_bytes());
            out.extend(t.offset.unwrap_or(next).to_le_bytes());
            next += t.data.len().next_multiple_of(self.alignment) as u64;
        }
        out
    }

    pub fn bytes(&self) -> Bytes {
        let mut out = self.head();
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&t.data);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out
    }
}
