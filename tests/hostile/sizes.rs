//! Files that claim, or cause, more than a machine has.

use crate::{
    Opened,
    archive::{around, end, record, zip},
    in_memory,
    opcodes::*,
    open, says,
};
use std::{fs, os::unix::fs::FileExt};

const TERABYTE: u64 = 1 << 40;

/// Opens a file of such a size, of which only these parts are not zero.
fn sparse(name: &str, size: u64, parts: &[(u64, &[u8])]) -> Opened {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let file = fs::File::create(&path).unwrap();
    file.set_len(size).unwrap();
    for (at, bytes) in parts {
        file.write_all_at(bytes, *at).unwrap();
    }
    open(&path)
}

/// Within a few MiB, whatever the file claims.
fn frugal(what: &str, opened: Opened, parts: &[&str]) {
    let Opened { result, memory, read } = opened;
    match result {
        Ok(_) => assert!(parts.is_empty(), "{what}: should be refused"),
        Err(message) => says(what, &message, parts),
    }
    assert!(memory < 4 << 20 && read < 4 << 20, "{what}: {memory} bytes of memory, {read} bytes read");
}

/// An archive of this size, whose data.pkl begins with some opcodes and takes up nearly all of it.
fn wide_archive(opcodes: &[u8]) -> Opened {
    let mut pickle = record("x/data.pkl", opcodes);
    let head = zip(std::slice::from_ref(&pickle));
    let length = TERABYTE - (1 << 20);
    pickle.sizes = (length, length);
    // headers with sizes in zip64 fields; of the first only the length counts
    let lying = zip(&[pickle]);
    let data = lying.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let directory = lying.windows(4).rposition(|w| w == b"PK\x05\x06").unwrap() - data;
    let at = TERABYTE - 1000;
    let tail =
        [&lying[data..data + directory], &end(1, directory as u64, at, at + directory as u64)].concat();
    let start = TERABYTE - tail.len() as u64;
    let tail =
        [&lying[data..data + directory], &end(1, directory as u64, start, start + directory as u64)].concat();
    sparse("x.pt", TERABYTE, &[(0, &head[..data]), (TERABYTE - tail.len() as u64, &tail)])
}

#[test]
fn a_terabyte_of_nothing() {
    let length = |n: u64| n.to_le_bytes();
    let skipped = |opcode: &[u8], n: u64| [b"\x80\x02", opcode, &length(n)].concat();
    frugal("zeros", sparse("x.pt", TERABYTE, &[]), &["begins like no checkpoint"]);
    frugal(
        "zeros with an end",
        sparse("x.pt", TERABYTE, &[(0, b"PK\x03\x04")]),
        &["without its directory at the end: cut off"],
    );
    let opened = sparse(
        "x.pt",
        TERABYTE,
        &[(0, b"PK\x03\x04"), (TERABYTE - 98, &end(1 << 60, TERABYTE - 98, 0, TERABYTE - 98))],
    );
    frugal("a directory of a terabyte", opened, &["damaged"]);
    frugal("data.pkl of zeros", wide_archive(b"\x80\x02"), &["opcode 0x00"]);
    frugal("bytes", wide_archive(&skipped(b"\x8e", TERABYTE / 2)), &["opcode 0x00"]);
    frugal("bytes beyond the record", wide_archive(&skipped(b"\x8e", TERABYTE)), &["the pickle is cut off"]);
    frugal(
        "text",
        wide_archive(&skipped(b"\x8d", TERABYTE / 2)),
        &["a string that claims 549755813888 bytes"],
    );
    let old = |n: u64| sparse("x.pt", TERABYTE, &[(0, &[pickle(MAGIC), skipped(b"\x8e", n)].concat())]);
    frugal("an old file", old(TERABYTE / 2), &["opcode 0x00"]);
    frugal("an old file cut off", old(TERABYTE), &["the pickle is cut off (protocol version)"]);
    for (what, claim, part) in [
        ("a header of all", TERABYTE - 8, "the header claims 1099511627768 bytes; accepted: up to 100000000"),
        (
            "a header of more",
            TERABYTE,
            "the header claims 1099511627776 bytes, and only 1099511627768 follow",
        ),
        ("a header of 2^64 - 1", u64::MAX, "the header claims 18446744073709551615 bytes"),
        ("a header of zeros", 90_000_000, "the header is not a JSON object"),
    ] {
        let opened = sparse("x.safetensors", TERABYTE, &[(0, &length(claim))]);
        frugal(what, opened, &[part]);
    }
    let entry = br#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    let opened = sparse("x.safetensors", TERABYTE, &[(0, &length(entry.len() as u64)), (8, entry)]);
    frugal("a terabyte behind the last tensor", opened, &["bytes follow the last tensor"]);
    let entry =
        format!(r#"{{"w":{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}}}"#, "1,".repeat(100_000));
    let opened = sparse(
        "x.safetensors",
        9 + entry.len() as u64,
        &[(0, &length(entry.len() as u64)), (8, entry.as_bytes())],
    );
    frugal("100001 dimensions", opened, &["tensor `w`: it has 100001 dimensions; accepted: up to 64"]);
}

/// Tensors that share one storage may together count more bytes than 64 bits can.
#[test]
fn more_bytes_than_numbers() {
    let size: u64 = 1 << 62;
    let folder = in_memory();
    let path = folder.path().join("x.pt");
    let file = fs::File::create(&path).unwrap();
    if file.set_len(size).is_err() {
        return; // a file system of smaller files
    }
    let elements = size as i64 - (1 << 20);
    let storage = storage("ByteStorage", "1", int(elements));
    let view = |i: i64| rebuild(storage.clone(), int(i), tuple(&[int(elements - i)]), tuple(&[int(1)]));
    let names = ["a", "b", "c", "d", "e"];
    let pairs: Vec<_> = names.iter().zip(0..).map(|(name, i)| (*name, view(i))).collect();
    let head = old(MAGIC, int(1001), dict(&pairs), &[text("1")], &(elements as u64).to_le_bytes());
    file.write_all_at(&head, 0).unwrap();
    frugal("five views of 4 EiB", open(&path), &["holds tensors of more bytes than 64 bits can count"]);
    let head = old(MAGIC, int(1001), dict(&pairs[..3]), &[text("1")], &(elements as u64).to_le_bytes());
    file.write_all_at(&head, 0).unwrap();
    frugal("three views of 4 EiB", open(&path), &[]);
}

/// Opens an archive around this pickle, and says how much memory it took.
fn memory(what: &str, opcodes: &[u8], parts: &[&str]) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pt");
    fs::write(&path, around(&pickle(opcodes))).unwrap();
    let started = std::time::Instant::now();
    let opened = open(&path);
    let taken = started.elapsed();
    eprintln!("{what}: {} bytes, {} MiB, {taken:?}", opcodes.len(), opened.memory >> 20);
    match opened.result {
        Ok(_) => assert!(parts.is_empty(), "{what}: should be refused"),
        Err(message) => says(what, &message, parts),
    }
    assert!(taken.as_secs() < 10, "{what}: {taken:?}");
    opened.memory
}

/// Small opcodes, many times: what grows faster than the file is refused, by a bound that is stated.
#[test]
fn floods() {
    let many = |opcodes: &[u8], n: usize| opcodes.repeat(n);
    let more = "the pickle holds values of more than 512 MiB";
    let deep = "the pickle's stack is too deep";
    for (what, opcodes, part, most) in [
        ("marks", many(b"(", 9_000_000), deep, 300),
        ("copies", [b"N".to_vec(), many(b"2", 9_000_000)].concat(), deep, 200),
        ("dicts", many(b"}0", 8_000_000), more, 1600),
        ("tuples in tuples", [b")".to_vec(), many(b"\x85", 2_000_000)].concat(), "holds a tuple", 300),
        (
            "remembered",
            [b"N".to_vec(), (0..2_000_000u32).flat_map(|i| put(b"", i)).collect()].concat(),
            "holds a None",
            200,
        ),
        (
            "dicts of dicts",
            {
                let large = [b"}(".to_vec(), many(b"NN", 200_000), b"uq\0".to_vec()].concat();
                [large, many(b"ccollections\nOrderedDict\nh\0\x85R0", 1_000)].concat()
            },
            more,
            1600,
        ),
    ] {
        let memory = memory(what, &opcodes, &[part]) >> 20;
        assert!(memory < most, "{what}: {memory} MiB");
    }
}

/// Dicts that hold each other: a few of them have more paths than there are atoms.
#[test]
fn dicts_in_dicts() {
    let item = |key: &str, value: Bytes| [text(key), value, b"s".to_vec()].concat();
    let circle = [b"}q\0".to_vec(), item("w", sound()), item("a", get(0))].concat();
    assert!(memory("a circle", &circle, &["holds dicts that contain themselves"]) < 4 << 20);
    let pair = [
        b"}q\0".to_vec(),
        item("w", sound()),
        item("a", [b"}".to_vec(), item("w", sound()), item("b", get(0))].concat()),
    ]
    .concat();
    assert!(memory("a circle of two", &pair, &["holds dicts that contain themselves"]) < 4 << 20);
    let model = [b"}q\0".to_vec(), item("model", get(0))].concat();
    assert!(memory("models in models", &model, &["holds a dict without tensors"]) < 4 << 20);
    let nested = |depth: usize| {
        let (before, after) = ([b"}".to_vec(), text("model")].concat(), b"s".repeat(depth));
        [before.repeat(depth), dict(&[("w", sound())]), after].concat()
    };
    assert!(memory("twelve models in models", &nested(12), &[]) < 4 << 20);
    memory("many models in models", &nested(100_000), &["holds a dict without tensors"]);
    // Every dict holds the one below it twice, and a tensor.
    let mut laughs = put(&dict(&[("w", sound())]), 0);
    for i in 1..60 {
        laughs.extend(
            [put(b"}", i), item("w", sound()), item("a", get(i - 1)), item("b", get(i - 1))].concat(),
        );
    }
    let taken =
        memory("a billion laughs", &laughs, &["names more than 2000000 values, or by names of more than"]);
    assert!(taken < 512 << 20, "{taken}");
    // Long keys, once in the file, and in every name.
    let key = "k".repeat(1 << 20);
    let mut names = [put(&text(&key), 1000), put(&dict(&[("w", sound())]), 0)].concat();
    for i in 1..60 {
        let again = |value: Bytes| [get(1000), value, b"s".to_vec()].concat();
        names.extend([put(b"}", i), item("w", sound()), again(get(i - 1)), item("b", get(i - 1))].concat());
    }
    let taken =
        memory("names that grow", &names, &["names more than 2000000 values, or by names of more than"]);
    assert!(taken < 640 << 20, "{taken}");
    // What lies beside the weights is counted, and a few are named.
    let many = [get(1000), b"N".to_vec()].concat().repeat(100_000);
    let beside = [
        put(&text(&key), 1000),
        b"0}(".to_vec(),
        many.clone(),
        text("model"),
        dict(&[("w", sound())]),
        b"u".to_vec(),
    ]
    .concat();
    assert!(memory("long names beside", &beside, &[]) < 64 << 20);
    let beside = [put(&text(&key), 1000), b"0}(".to_vec(), text("w"), sound(), many, b"u".to_vec()].concat();
    assert!(memory("long names among", &beside, &[]) < 64 << 20);
}

/// A name that is nothing but prefixes of wrappers.
#[test]
fn wrappers_in_wrappers() {
    let taken = memory("wrappers", &dict(&[(&"module.".repeat(1_000_000), sound())]), &[]);
    assert!(taken < 128 << 20, "{taken}");
}
