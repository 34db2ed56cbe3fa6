//! Files of torch before 1.6 that lie.

use crate::{opcodes::*, open_bytes, refuses};

fn object() -> Bytes {
    dict(&[("w", sound())])
}

fn with(keys: &[Bytes], storages: &[u8]) -> Bytes {
    old(MAGIC, int(1001), object(), keys, storages)
}

#[test]
fn old_files_that_lie() {
    let whole = stored(16, &[7; 64]);
    let one = || vec![text("1")];
    assert_eq!(open_bytes(&with(&one(), &whole)).unwrap().tensors().len(), 1);
    assert_eq!(open_bytes(&with(&[int(1)], &whole)).unwrap().tensors().len(), 1);
    let lying = |length: u64| with(&one(), &stored(length, &[7; 64]));
    let promised = "has storage `1` of 16 elements; at its place ";
    let damaged = "64 bytes follow: cut off, or damaged";
    let is_none = "is a pickle, but none that torch.save wrote";
    let cases: &[(&str, Bytes, &[&str])] = &[
        ("another number as magic", old(&int(7), int(1001), object(), &one(), &whole), &[is_none]),
        ("a dict as magic", old(&object(), int(1001), object(), &one(), &whole), &[is_none]),
        (
            "another version",
            old(MAGIC, int(1002), object(), &one(), &whole),
            &["another version of torch's old format than 1001"],
        ),
        ("text as version", old(MAGIC, text("1001"), object(), &one(), &whole), &["than 1001"]),
        (
            "a call as version",
            old(MAGIC, global("posix.system"), object(), &one(), &whole),
            &["pickled `posix.system`"],
        ),
        ("a storage of 17", lying(17), &[promised, "17 are announced", damaged]),
        ("a storage of 0", lying(0), &[promised, "0 are announced", damaged]),
        ("a storage of 2^62", lying(1 << 62), &["4611686018427387904 are announced", damaged]),
        ("a storage of 2^64 - 1", lying(u64::MAX), &["18446744073709551615 are announced", damaged]),
        (
            "a storage cut off",
            with(&one(), &whole[..71]),
            &[promised, "16 are announced, and 63 bytes follow: cut off"],
        ),
        ("a length cut off", with(&one(), &whole[..7]), &["is cut off at storage `1`"]),
        ("no storages", with(&one(), &[]), &["is cut off at storage `1`"]),
        ("no keys", with(&[], &whole), &["lies in storage `1`, which the file does not have"]),
        (
            "a key twice",
            with(&[text("1"), text("1")], &[whole.clone(), whole.clone()].concat()),
            &["lists the storage `1` twice"],
        ),
        (
            "a key of nothing",
            with(&[text("1"), text("2")], &[whole.clone(), whole.clone()].concat()),
            &["lists the storage `2`, which no tensor is in"],
        ),
        (
            "a key that is None",
            with(&[b"N".to_vec()], &whole),
            &["lists a storage by something that is no text"],
        ),
        (
            "a storage of 2^63 bytes",
            {
                let storage = storage("DoubleStorage", "1", int(i64::MAX));
                let tensor = rebuild(storage, int(0), tuple(&[int(1)]), tuple(&[int(1)]));
                old(MAGIC, int(1001), dict(&[("w", tensor)]), &one(), &stored(i64::MAX as u64, &[7; 64]))
            },
            &["tensor `w` lies in a storage of more bytes than 64 bits can count"],
        ),
        (
            "one storage, two sizes",
            {
                let storage = storage("FloatStorage", "1", int(1 << 40));
                let small = rebuild(storage, int(0), tuple(&[int(1)]), tuple(&[int(1)]));
                old(MAGIC, int(1001), dict(&[("v", sound()), ("w", small)]), &one(), &whole)
            },
            &["storage `1`", "cut off, or damaged"],
        ),
        (
            "a view of a storage",
            {
                let view = tuple(&[text("2"), int(0), int(4)]);
                let parts =
                    [text("storage"), global("torch.FloatStorage"), text("1"), text("cpu"), int(16), view];
                let storage = [tuple(&parts), b"Q".to_vec()].concat();
                let tensor = rebuild(storage, int(0), tuple(&[int(1)]), tuple(&[int(1)]));
                old(MAGIC, int(1001), dict(&[("w", tensor)]), &one(), &whole)
            },
            &["tensor `w` lies in a view of a storage, which torch wrote before 0.4"],
        ),
    ];
    for (what, bytes, parts) in cases {
        refuses(what, bytes, &[&["x.pt"], *parts].concat());
    }
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    refuses("a tar archive", &tar, &["is a tar archive of torch before 0.1.10"]);
    for (what, start) in
        [("", 0), ("protocol version", 1), ("system", 2), ("object", 3), ("list of storages", 4)]
    {
        let bytes: Bytes = [MAGIC.to_vec(), int(1001), dict(&[]), object()]
            .iter()
            .take(start)
            .flat_map(|p| pickle(p))
            .collect();
        let parts = ["the pickle is cut off", &format!("({what})")];
        refuses(what, &[&bytes[..], b"\x80\x02"].concat(), if start == 0 { &parts[..1] } else { &parts });
    }
}

/// The first byte of a safetensors file is one of a length, and may be that of a pickle.
#[test]
fn safetensors_by_another_name() {
    let entry = r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    for length in [0x80, 0x280, 0x480] {
        let bytes =
            [&(length as u64).to_le_bytes()[..], format!("{entry:length$}").as_bytes(), &[7; 4]].concat();
        assert_eq!(open_bytes(&bytes).unwrap().tensors()[0].info.shape, [4]);
    }
}
