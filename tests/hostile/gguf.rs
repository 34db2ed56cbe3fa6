//! GGUF files that lie.

use crate::{gguf_files::*, in_memory, open, open_bytes, refuses, says};
use std::{fs, os::unix::fs::FileExt};

fn sound() -> Gguf {
    let keys = [
        string("general.architecture", "llama"),
        strings("tokenizer.ggml.tokens", &["<s>", "a", "", "\u{2581}b"]),
        key(
            "nested",
            ARRAY,
            &array(ARRAY, 2, &[array(U32, 1, &[1, 0, 0, 0]), array(STRING, 0, &[])].concat()),
        ),
        number("general.file_type", 1),
    ];
    let tensors = [
        tensor("token_embd.weight", &[64, 2], F16, &[1; 256]),
        tensor("blk.0.ffn_up.weight", &[64, 3], Q8_0, &[2; 2 * 34 * 3]),
        tensor("output_norm.weight", &[3], F32, &[3; 12]),
        tensor("scale", &[], BF16, &[4; 2]),
    ];
    Gguf::new(&keys, &tensors)
}

fn changed(change: impl FnOnce(&mut Gguf)) -> Bytes {
    let mut file = sound();
    change(&mut file);
    file.bytes()
}

#[test]
fn sound_files() {
    for version in [2, 3] {
        let opened = open_bytes(&changed(|f| f.version = version)).unwrap();
        let shapes: Vec<_> = opened.tensors().iter().map(|t| t.shape()).collect();
        assert_eq!(shapes, [vec![2, 64], vec![3, 64], vec![3], vec![]]);
        assert_eq!(opened.tensors()[1].info.shape, [3, 68]);
        assert_eq!(opened.gguf().unwrap().names().count(), 4);
    }
    // without the padding behind the last tensor, and with holes and another order of the data
    let bytes = sound().bytes();
    let padding = 30;
    open_bytes(&bytes[..bytes.len() - padding]).unwrap();
    refuses("a byte less", &bytes[..bytes.len() - padding - 1], &["tensor `scale`: its 2 bytes", "cut off?"]);
    let swapped = changed(|f| {
        f.tensors[0].offset = Some(224);
        f.tensors[1].offset = Some(0);
        f.tensors.truncate(2);
    });
    let opened = open_bytes(&swapped).unwrap();
    assert_eq!(opened.tensors()[0].info.name, "token_embd.weight");
    assert!(open_bytes(&Gguf::new(&[], &[]).bytes()).unwrap().tensors().is_empty());
}

#[test]
fn headers_that_lie() {
    let cases: &[(&str, Bytes, &[&str])] = &[
        ("version 1", changed(|f| f.version = 1), &["GGUF version 1", "accepted: 2 and 3"]),
        ("version 4", changed(|f| f.version = 4), &["GGUF version 4; accepted: 2 and 3"]),
        ("version 0", changed(|f| f.version = 0), &["GGUF version 0"]),
        (
            "big-endian",
            changed(|f| f.version = 3u32.swap_bytes()),
            &["big-endian GGUF file (version 3)", "accepted: little-endian"],
        ),
        (
            "2^40 keys",
            changed(|f| f.counts.1 = Some(1 << 40)),
            &["claims 1099511627776 key-values; accepted"],
        ),
        ("60000 keys", changed(|f| f.counts.1 = Some(60_000)), &["claims 60000 key-values, and only"]),
        (
            "2^60 tensors",
            changed(|f| f.counts.0 = Some(1 << 60)),
            &["claims 1152921504606846976 tensors; accepted"],
        ),
        ("100 tensors", changed(|f| f.counts.0 = Some(100)), &["claims 100 tensors, and only"]),
        (
            "negative counts",
            changed(|f| f.counts = (Some(u64::MAX), Some(4))),
            &["claims 18446744073709551615 tensors; accepted"],
        ),
        ("no name", changed(|f| f.keys[0] = string("", "x")), &["the name of key 0 is empty"]),
        (
            "a key that is no text",
            changed(|f| f.keys[1] = [&text(b"a\xff"), &U32.to_le_bytes()[..], &[0; 4]].concat()),
            &["the name of key 1 is not UTF-8: `a\u{fffd}`"],
        ),
        (
            "a long key",
            changed(|f| f.keys[1] = [&(1u64 << 50).to_le_bytes()[..], b"a"].concat()),
            &["the name of key 1 claims 1125899906842624 bytes; accepted: up to 65535"],
        ),
        (
            "a key twice",
            changed(|f| f.keys[1] = f.keys[0].clone()),
            &["key `general.architecture` occurs twice"],
        ),
        ("type 13", changed(|f| f.keys[1] = key("k", 13, &[0; 8])), &["key `k` has a value of type 13"]),
        (
            "an array of type 13",
            changed(|f| f.keys[1] = key("k", ARRAY, &array(13, 1, &[0; 8]))),
            &["key `k` has values of type 13; accepted: 0 to 12"],
        ),
        (
            "a long string",
            changed(|f| f.keys[1] = key("k", STRING, &(1u64 << 62).to_le_bytes())),
            &["key `k` claims 4611686018427387904 bytes, and only"],
        ),
        (
            "a string in an array",
            changed(|f| f.keys[1] = key("k", ARRAY, &array(STRING, 1, &u64::MAX.to_le_bytes()))),
            &["key `k` claims 18446744073709551615 bytes, and only"],
        ),
        (
            "2^62 numbers",
            changed(|f| f.keys[1] = key("k", ARRAY, &array(U32, 1 << 62, &[0; 8]))),
            &["claims 4611686018427387904 values in key `k`, and only"],
        ),
        (
            "2^61 arrays",
            changed(|f| f.keys[1] = key("k", ARRAY, &array(ARRAY, 1 << 61, &[0; 8]))),
            &["claims 2305843009213693952 values in key `k`"],
        ),
        (
            "arrays in arrays",
            changed(|f| f.keys[1] = key("k", ARRAY, &array(ARRAY, 1, &[]).repeat(60))),
            &["key `k` has arrays in arrays; accepted: up to 4 levels"],
        ),
        ("alignment 0", changed(|f| f.keys[1] = number("general.alignment", 0)), &["general.alignment is 0"]),
        (
            "alignment 48",
            changed(|f| f.keys[1] = number("general.alignment", 48)),
            &["general.alignment is 48; accepted: a power of two"],
        ),
        (
            "alignment by name",
            changed(|f| f.keys[1] = string("general.alignment", "x")),
            &["general.alignment is no whole number"],
        ),
        (
            "alignment of a gigabyte",
            changed(|f| f.keys[1] = number("general.alignment", 1 << 30)),
            &["tensor `token_embd.weight`", "which has 0 bytes of data"],
        ),
    ];
    for (what, bytes, parts) in cases {
        refuses(what, bytes, parts);
    }
}

#[test]
fn tensors_that_lie() {
    let up = |change: &dyn Fn(&mut Tensor)| changed(|f| change(&mut f.tensors[1]));
    let named = "tensor `blk.0.ffn_up.weight`: ";
    let many = "has more bytes than can be";
    let cases: &[(&str, Bytes, &[&str])] = &[
        ("twice", up(&|t| t.name = b"scale".to_vec()), &["tensor `scale`: the name occurs twice"]),
        ("no text", up(&|t| t.name = b"\xc3\x28".to_vec()), &["the name of tensor 1 is not UTF-8"]),
        ("long", up(&|t| t.name = vec![b'a'; 2000]), &["the name of tensor 1 claims 2000 bytes; accepted"]),
        ("5 dimensions", up(&|t| t.dims = vec![1; 5]), &[named, "it has 5 dimensions; accepted: up to 4"]),
        ("0 weights", up(&|t| t.dims = vec![64, 0]), &[named, "shape [0, 64] has no elements"]),
        ("negative", up(&|t| t.dims = vec![64, u64::MAX]), &[named, many]),
        ("2^63 rows", up(&|t| t.dims = vec![64, 1 << 63]), &[named, many]),
        ("2^128", up(&|t| t.dims = vec![1 << 32; 4]), &[named, many]),
        ("huge", up(&|t| t.dims = vec![1 << 40]), &[named, "reach past the end of the file"]),
        (
            "half a block",
            up(&|t| t.dims = vec![48, 4]),
            &[named, "rows of 48 weights are no whole blocks of Q8_0"],
        ),
        (
            "a scalar block",
            up(&|t| t.dims = vec![]),
            &[named, "rows of 1 weights are no whole blocks of Q8_0"],
        ),
        (
            "Q5_K",
            up(&|t| t.kind = 13),
            &[named, "Q5_K is not read; accepted: F32, F16, BF16,", "llama-quantize --allow-requantize"],
        ),
        ("IQ4_XS", up(&|t| t.kind = 23), &[named, "IQ4_XS is not read"]),
        ("type 99", up(&|t| t.kind = 99), &[named, "type 99 is unknown; accepted: F32,"]),
        (
            "offset 8",
            up(&|t| t.offset = Some(8)),
            &[named, "its offset 8 is no multiple of the alignment 32"],
        ),
        (
            "overlapping",
            up(&|t| t.offset = Some(224)),
            &[named, "its data begin at byte 224, within those of `token_embd.weight`, which end at 256"],
        ),
        ("the same place", up(&|t| t.offset = Some(0)), &["within those of"]),
        (
            "past the end",
            up(&|t| t.offset = Some(1 << 40)),
            &[named, "its 204 bytes from byte 1099511627776"],
        ),
        ("2^64", up(&|t| t.offset = Some(u64::MAX - 31)), &[named, "reach past the end of the file"]),
    ];
    for (what, bytes, parts) in cases {
        refuses(what, bytes, parts);
    }
}

/// Cut off at every byte, and with every byte changed.
#[test]
fn damaged_anywhere() {
    let bytes = sound().bytes();
    let words = ["cut off", "begins like no checkpoint", "is empty"];
    for end in 0..bytes.len() - 30 {
        let message = open_bytes(&bytes[..end]).expect_err("cut off");
        assert!(words.iter().any(|word| message.contains(word)), "{end}: {message}");
    }
    for at in 0..sound().head().len() {
        for change in [0x01, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= change;
            drop(open_bytes(&bytes));
        }
    }
}

/// A terabyte, of which only the head is not zero.
#[test]
fn a_terabyte() {
    const TERABYTE: u64 = 1 << 40;
    let folder = in_memory();
    let path = folder.path().join("x.gguf");
    let one = [tensor("w", &[4], F32, &[0; 16])];
    let claim = |kind, value: &[u8]| {
        let mut file = Gguf::new(&[], &[]);
        file.keys.push(key("k", kind, value));
        file.head()
    };
    let counted = |tensors, keys| {
        let mut file = Gguf::new(&[], &[]);
        file.counts = (tensors, keys);
        file.head()
    };
    let strings = claim(ARRAY, &array(STRING, TERABYTE / 16, &[]));
    let more = "key-values take more than 100000000 bytes with key `k`";
    let cases: &[(&str, Bytes, &[&str], u64)] = &[
        ("a string", claim(STRING, &(TERABYTE / 2).to_le_bytes()), &[more], 4),
        ("numbers", claim(ARRAY, &array(U32, TERABYTE / 8, &[])), &[more], 4),
        ("empty strings", strings, &[more], 400),
        ("empty arrays", claim(ARRAY, &array(ARRAY, TERABYTE / 16, &[])), &[more], 400),
        ("keys", counted(None, Some(65_536)), &["the name of key 0 is empty"], 8),
        ("tensors", counted(Some(200_000), None), &["the name of tensor 0 is empty"], 4),
        ("one tensor", Gguf::new(&[], &one).head(), &[], 4),
    ];
    for (what, head, parts, most) in cases {
        let file = fs::File::create(&path).unwrap();
        file.set_len(TERABYTE).unwrap();
        file.write_all_at(head, 0).unwrap();
        let opened = open(&path);
        match opened.result {
            Ok(_) => assert!(parts.is_empty(), "{what}: should be refused"),
            Err(message) => says(what, &message, parts),
        }
        eprintln!("{what}: {} MiB, {} MiB read", opened.memory >> 20, opened.read >> 20);
        assert!(opened.memory < most << 20 && opened.read < most << 20, "{what}: {} bytes", opened.memory);
    }
}

/// As many keys and tensors as are accepted, and one more of each.
#[test]
fn floods() {
    let folder = in_memory();
    let path = folder.path().join("x.gguf");
    let keys = |n: u32| -> Vec<Bytes> { (0..n).map(|i| key(&format!("{i:x}"), 0, &[1])).collect() };
    let tensors = |n: u32| -> Vec<Tensor> {
        (0..n)
            .map(|i| Tensor { offset: Some(i.into()), ..tensor(&format!("{i:x}"), &[], 24, &[1]) })
            .collect()
    };
    let unaligned = number("general.alignment", 1);
    let mut many = Gguf::new(&[unaligned], &tensors(262_144));
    many.alignment = 1;
    for (what, file, parts) in [
        ("keys", Gguf::new(&keys(65_536), &[]), &[][..]),
        ("more keys", Gguf::new(&keys(65_537), &[]), &["claims 65537 key-values; accepted: up to 65536"]),
        ("tensors", many, &[]),
        (
            "more tensors",
            Gguf::new(&[], &tensors(262_145)),
            &["claims 262145 tensors; accepted: up to 262144"],
        ),
    ] {
        let bytes = file.bytes();
        fs::write(&path, &bytes).unwrap();
        let opened = open(&path);
        eprintln!("{what}: {} bytes, {} MiB", bytes.len(), opened.memory >> 20);
        match opened.result {
            Ok(_) => assert!(parts.is_empty(), "{what}: should be refused"),
            Err(message) => says(what, &message, parts),
        }
        let most = (2 << 20) + 24 * bytes.len() as u64;
        assert!(opened.memory < most, "{what}: {} bytes of memory for {}", opened.memory, bytes.len());
    }
}

#[test]
fn shards_that_lie() {
    let folder = in_memory();
    let shard = |number: u16, count: u16, tensors: i32, name: &str| {
        let mut keys = vec![
            key("split.no", U16, &number.to_le_bytes()),
            key("split.count", U16, &count.to_le_bytes()),
            key("split.tensors.count", I32, &tensors.to_le_bytes()),
        ];
        if number == 0 {
            keys.insert(0, string("general.architecture", "llama"));
        }
        Gguf::new(&keys, &[tensor(name, &[4], F32, &[number as u8; 16])]).bytes()
    };
    let write = |name: &str, bytes: &[u8]| {
        fs::write(folder.path().join(name), bytes).unwrap();
        folder.path().join(name)
    };
    let first = write("m-00001-of-00002.gguf", &shard(0, 2, 2, "a"));
    let missing = "is one of 2 shards, and one is missing: `m-00002-of-00002.gguf`; download it again";
    says("a missing shard", &open(&first).result.unwrap_err(), &[missing]);
    says("in a folder", &open(folder.path()).result.unwrap_err(), &[missing]);
    let second = write("m-00002-of-00002.gguf", &shard(1, 2, 2, "b"));
    for path in [first.as_path(), second.as_path(), folder.path()] {
        let opened = open(path).result.unwrap();
        let names: Vec<_> = opened.tensors().iter().map(|t| t.info.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(opened.gguf().unwrap().text("general.architecture"), Some("llama"));
    }
    write("m-00002-of-00002.gguf", &shard(1, 2, 2, "a"));
    says("twice", &open(&first).result.unwrap_err(), &["tensor `a` is also in"]);
    write("m-00001-of-00002.gguf", &shard(0, 2, 3, "a"));
    write("m-00002-of-00002.gguf", &shard(1, 2, 3, "b"));
    says("too few", &open(&second).result.unwrap_err(), &["hold 2 tensors, and split.tensors.count is 3"]);
    write("m-00002-of-00002.gguf", &shard(0, 2, 2, "b"));
    says(
        "the first twice",
        &open(&first).result.unwrap_err(),
        &["is shard 1 of 2 of a split model, and its name does not say so"],
    );
    let renamed = write("renamed.gguf", &shard(1, 2, 2, "b"));
    says(
        "renamed",
        &open(&renamed).result.unwrap_err(),
        &["is shard 2 of 2 of a split model", "accepted: NAME-00002-of-00002.gguf"],
    );
    says("two models", &open(folder.path()).result.unwrap_err(), &["has several GGUF models"]);
    let outside = write("x-00003-of-00002.gguf", &shard(2, 2, 2, "b"));
    says("3 of 2", &open(&outside).result.unwrap_err(), &["is shard 3 of 2", "a number within the count"]);
}
