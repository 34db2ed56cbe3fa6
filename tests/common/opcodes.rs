//! A small writer of pickles, sound and otherwise. Every function gives the opcodes of one value.
#![allow(dead_code)] // each crate uses a part

pub type Bytes = Vec<u8>;

/// A whole pickle.
pub fn pickle(value: &[u8]) -> Bytes {
    [b"\x80\x02", value, b"."].concat()
}

pub fn text(text: &str) -> Bytes {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

pub fn int(n: i64) -> Bytes {
    [b"\x8a\x08", &n.to_le_bytes()[..]].concat()
}

/// 2^64 and more.
pub fn huge() -> Bytes {
    b"\x8a\x09\0\0\0\0\0\0\0\0\x01".to_vec()
}

pub fn global(name: &str) -> Bytes {
    let (module, name) = name.rsplit_once('.').unwrap();
    format!("c{module}\n{name}\n").into_bytes()
}

/// The same by its parts as text.
pub fn stack_global(name: &str) -> Bytes {
    let (module, name) = name.rsplit_once('.').unwrap();
    [text(module), text(name), b"\x93".to_vec()].concat()
}

pub fn tuple(items: &[Bytes]) -> Bytes {
    [b"(", &items.concat()[..], b"t"].concat()
}

pub fn call(function: &str, arguments: &[Bytes]) -> Bytes {
    [global(function), tuple(arguments), b"R".to_vec()].concat()
}

pub fn dict(pairs: &[(&str, Bytes)]) -> Bytes {
    let pairs = pairs.iter().map(|(k, v)| [text(k), v.clone()].concat());
    [b"}(", &pairs.collect::<Vec<_>>().concat()[..], b"u"].concat()
}

/// Remembers the value under a number.
pub fn put(value: &[u8], key: u32) -> Bytes {
    [value, b"r", &key.to_le_bytes()].concat()
}

pub fn get(key: u32) -> Bytes {
    [b"j", &key.to_le_bytes()[..]].concat()
}

pub fn storage(class: &str, key: &str, elements: Bytes) -> Bytes {
    let parts = [text("storage"), global(&format!("torch.{class}")), text(key), text("cpu"), elements];
    [tuple(&parts), b"Q".to_vec()].concat()
}

/// A tensor in a storage, with anything as offset, sizes and strides.
pub fn rebuild(storage: Bytes, offset: Bytes, sizes: Bytes, strides: Bytes) -> Bytes {
    let hooks = b"ccollections\nOrderedDict\n)R".to_vec();
    call("torch._utils._rebuild_tensor_v2", &[storage, offset, sizes, strides, b"\x89".to_vec(), hooks])
}

/// A tensor of f32 in storage `1` of 64 bytes.
pub fn tensor(elements: i64, offset: i64, sizes: &[i64], strides: &[i64]) -> Bytes {
    let numbers = |n: &[i64]| tuple(&n.iter().map(|&n| int(n)).collect::<Vec<_>>());
    rebuild(storage("FloatStorage", "1", int(elements)), int(offset), numbers(sizes), numbers(strides))
}

/// A sound one.
pub fn sound() -> Bytes {
    tensor(16, 0, &[4, 4], &[4, 1])
}

/// A file of torch before 1.6: its five pickles, and what follows them.
pub fn old(magic: &[u8], version: Bytes, object: Bytes, keys: &[Bytes], storages: &[u8]) -> Bytes {
    let keys = [b"](", &keys.concat()[..], b"e"].concat();
    let system = dict(&[("protocol_version", int(1001)), ("little_endian", b"\x88".to_vec())]);
    let pickles = [magic.to_vec(), version, system, object, keys];
    [pickles.map(|p| pickle(&p)).concat(), storages.to_vec()].concat()
}

pub const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// A storage of such a file: its elements, its bytes.
pub fn stored(elements: u64, bytes: &[u8]) -> Bytes {
    [&elements.to_le_bytes()[..], bytes].concat()
}
