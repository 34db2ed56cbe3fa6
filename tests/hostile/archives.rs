//! Zip archives that lie about what they hold.

use crate::{
    archive::{Record, around, end, record, zip},
    opcodes::*,
    open_bytes, refuses, says,
};

fn object() -> Bytes {
    pickle(&dict(&[("w", sound())]))
}

fn records() -> Vec<Record> {
    vec![record("x/data.pkl", &object()), record("x/data/1", &[7; 64])]
}

/// The usual records after a change, and more.
fn changed(change: impl FnOnce(&mut Vec<Record>)) -> Bytes {
    let mut records = records();
    change(&mut records);
    zip(&records)
}

#[test]
fn records_that_lie() {
    assert_eq!(open_bytes(&zip(&records())).unwrap().tensors().len(), 1);
    let stored = "compressed or encrypted; accepted: stored, as torch.save writes";
    let cases: &[(&str, Bytes, &[&str])] = &[
        ("a record twice", changed(|r| r.push(r[0].clone())), &["two records `x/data.pkl`"]),
        ("a storage twice", changed(|r| r.push(r[1].clone())), &["two records `x/data/1`"]),
        (
            "one record in another",
            changed(|r| {
                r.push(record("x/data/2", &[7; 64]));
                r[2].offset = Some(object().len() as u64 + 40);
            }),
            &["records `x/data/1` and `x/data/2` overlap"],
        ),
        ("compressed", changed(|r| r[0].method = 8), &["record `data.pkl` is", stored]),
        (
            "a bomb",
            changed(|r| (r[0].method, r[0].sizes.1) = (8, 1 << 40)),
            &["record `data.pkl` is", stored],
        ),
        ("a method to come", changed(|r| r[1].method = 99), &["record `data/1` is", stored]),
        ("encrypted", changed(|r| r[0].flags |= 1), &["record `data.pkl` is", stored]),
        ("encrypted strongly", changed(|r| r[1].flags |= 0x41), &["record `data/1` is", stored]),
        (
            "stored, of two sizes",
            changed(|r| r[1].sizes.1 = 65),
            &["whose record `x/data/1` claims", "damaged"],
        ),
        (
            "more than the file",
            changed(|r| r[1].sizes = (1 << 40, 1 << 40)),
            &["whose record `x/data/1` claims bytes", "cut off, or damaged"],
        ),
        ("2^64 bytes", changed(|r| r[1].sizes = (u64::MAX, u64::MAX)), &["damaged"]),
        ("elsewhere", changed(|r| r[1].offset = Some(1 << 40)), &["damaged"]),
        ("at 2^64", changed(|r| r[1].offset = Some(u64::MAX)), &["damaged"]),
        ("at no record", changed(|r| r[1].offset = Some(1)), &["damaged"]),
        ("a name that is none", changed(|r| r[1].name = b"x/\xff".to_vec()), &["a name that is not UTF-8"]),
        (
            "data.pkl alone",
            changed(|r| drop(r.pop())),
            &["lies in storage `1`, which the file does not have"],
        ),
        (
            "no data.pkl",
            changed(|r| r[0].name = b"x/model.json".to_vec()),
            &["an archive of torch without data.pkl"],
        ),
        (
            "no archive of torch",
            changed(|r| r[0].name = b"word/document.xml".to_vec()),
            &["is a zip archive, but none of torch"],
        ),
        (
            "a storage in another folder",
            changed(|r| r[1].name = b"y/data/1".to_vec()),
            &["storage `1`, which the file does not have"],
        ),
        (
            "a short storage",
            changed(|r| r[1] = record("x/data/1", &[7; 63])),
            &["of 64 bytes, and the file holds 63 of them: cut off"],
        ),
        (
            "big-endian",
            changed(|r| r.push(record("x/byteorder", b"big"))),
            &["written on a machine of another byte order: big"],
        ),
        (
            "a byte order of a MiB",
            changed(|r| r.push(record("x/byteorder", &vec![b'a'; 1 << 20]))),
            &["of another byte order: aaaaaaaaaaaaaaaa"],
        ),
        (
            "a byte order compressed",
            changed(|r| {
                r.push(record("x/byteorder", b"little"));
                r[2].method = 8;
            }),
            &["record `byteorder` is", stored],
        ),
        (
            "TorchScript by name only",
            changed(|r| {
                r.push(record("x/constants.pkl", b""));
                r[0].data = pickle(&global("posix.system"));
                r[0].sizes = (r[0].data.len() as u64, r[0].data.len() as u64);
            }),
            &["pickled `posix.system`"],
        ),
    ];
    for (what, bytes, parts) in cases {
        refuses(what, bytes, &[&["x.pt"], *parts].concat());
    }
    // Names are never used as paths.
    for folder in ["..", "../../etc", "", "C:"] {
        let mut records = records();
        for r in &mut records {
            r.name = [folder.as_bytes(), &r.name[1..]].concat();
        }
        drop(open_bytes(&zip(&records)));
    }
    let beside = changed(|r| r.push(record("../../../../tmp/evil", b"evil")));
    assert_eq!(open_bytes(&beside).unwrap().tensors().len(), 1);
}

#[test]
fn directories_that_lie() {
    let whole = zip(&records());
    let tail = 22;
    let body = &whole[..whole.len() - tail];
    let directory = body.windows(4).position(|w| w == b"PK\x01\x02").unwrap() as u64;
    let (length, here) = (body.len() as u64 - directory, body.len() as u64);
    let with = |count, length, start, here| [body, &end(count, length, start, here)].concat();
    assert_eq!(with(2, length, directory, here), whole);
    let damaged = &["x.pt: is a", "archive", "damaged"][..];
    for (what, bytes) in [
        ("one record too many", with(3, length, directory, here)),
        ("one record too few", with(1, length, directory, here)),
        ("none", with(0, length, directory, here)),
        ("65534 records", with(65534, length, directory, here)),
        ("2^63 records", with(1 << 63, length, directory, here)),
        ("2^64 - 1 records", with(u64::MAX, length, directory, here)),
        ("a directory at 2^63", with(2, length, 1 << 63, here)),
        ("a directory at 2^64", with(2, length, u64::MAX - 1, here)),
        ("a directory after the file", with(2, length, directory + 4000, here)),
        ("zip64 that points to nothing", with(1 << 40, length, directory, here + 1)),
        ("zip64 that points to 2^64", with(1 << 40, length, directory, u64::MAX)),
        ("zip64 that points to itself", with(1 << 40, length, directory, here + 56)),
    ] {
        refuses(what, &bytes, damaged);
    }
    refuses("no end", body, &["is a torch archive (zip) without its directory at the end: cut off"]);
    refuses("a beginning alone", b"PK\x03\x04", &["without its directory at the end: cut off"]);
    refuses("an empty archive", &end(0, 0, 0, 0), &["begins like no checkpoint that is read"]);
    refuses(
        "junk in front",
        &[b"#!/bin/sh\n", &whole[..]].concat(),
        &["begins like no checkpoint that is read"],
    );
    // A directory of another length, or a second archive behind the first: whichever is read, it is one of them.
    let longer = [u64::MAX, 1 << 63, length + 22, 0].map(|length| with(2, length, directory, here));
    for bytes in longer.into_iter().chain([[&whole[..], &whole].concat()]) {
        match open_bytes(&bytes) {
            Ok(checkpoint) => assert_eq!(checkpoint.tensors().len(), 1),
            Err(message) => says("another directory", &message, damaged),
        }
    }
}

/// A comment may hold what looks like the end of an archive, and a directory before it.
#[test]
fn comments_that_look_like_archives() {
    let mut bytes = zip(&records());
    let fake = [zip(&[record("y/data.pkl", &pickle(b"N"))]), vec![0; 8]].concat();
    let at = bytes.len() - 2;
    bytes[at..].copy_from_slice(&(fake.len() as u16).to_le_bytes());
    bytes.extend(&fake);
    match open_bytes(&bytes) {
        Ok(checkpoint) => assert_eq!(checkpoint.tensors()[0].info.name, "w"),
        Err(message) => assert!(message.contains("holds a None") || message.contains("damaged"), "{message}"),
    }
    // An honest comment is none of our concern.
    let mut bytes = around(&object());
    let at = bytes.len() - 2;
    bytes[at..].copy_from_slice(&60_000u16.to_le_bytes());
    bytes.extend(vec![b'c'; 60_000]);
    assert_eq!(open_bytes(&bytes).unwrap().tensors().len(), 1);
}
