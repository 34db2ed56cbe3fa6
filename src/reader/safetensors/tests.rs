use proptest::prelude::*;

use super::*;

/// A file with this header and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 7);
    bytes
}

fn read(bytes: &[u8]) -> Result<Header> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("attack.safetensors");
    std::fs::write(&path, bytes).unwrap();
    read_header(&path)
}

/// Expects an error that names the file and holds all of these texts.
fn refuses(bytes: &[u8], texts: &[&str]) {
    let error = read(bytes).expect_err(&format!("should be refused: {texts:?}"));
    let message = error.to_string();
    assert!(matches!(error, Error::Format { .. }), "{message}");
    for text in [&"attack.safetensors"].into_iter().chain(texts) {
        assert!(message.contains(*text), "`{text}` is not in: {message}");
    }
}

fn one(entry: &str) -> String {
    format!("{{\"w\":{entry}}}")
}

#[test]
fn accepts_what_the_format_allows() {
    assert!(read(&file("{}", 0)).unwrap().tensors.is_empty());
    assert!(read(&file(r#"{"__metadata__":null}   "#, 0)).unwrap().metadata.is_empty());
    let header = r#"{"b":{"dtype":"F16","shape":[2,1],"data_offsets":[4,8]},
        "__metadata__":{"format":"pt"},
        "z":{"shape":[0,9],"data_offsets":[4,4],"dtype":"I64","extra":"ignored"},
        "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
    let read = read(&file(header, 8)).unwrap();
    assert_eq!(read.metadata["format"], "pt");
    let start = 8 + header.len() as u64;
    let found: Vec<_> = read.tensors.iter().map(|(t, at, _)| (t.name.as_str(), at - start)).collect();
    assert_eq!(found, [("a", 0), ("z", 4), ("b", 4)]);
}

#[test]
fn refuses_files_that_are_cut_off_or_something_else() {
    refuses(b"", &["is empty", "accepted"]);
    refuses(b"1234567", &["7 bytes"]);
    refuses(&u64::MAX.to_le_bytes(), &["claims 18446744073709551615 bytes", "only 0"]);
    refuses(&[9, 0, 0, 0, 0, 0, 0, 0, b'{', b'}'], &["claims 9 bytes", "only 2"]);
    refuses(b"\0\0\0\0\0\0\0\0", &["does not begin with `{`"]);
    refuses(&file("[1]", 0), &["does not begin with `{`"]);
    refuses(&file(" {}", 0), &["does not begin with `{`"]);
    refuses(&file("{", 0), &["header"]);
    refuses(&file("{} {}", 0), &["header"]);
    refuses(&file(&"{\"a\":".repeat(100_000), 0), &["header"]);
    refuses(&[&[4, 0, 0, 0, 0, 0, 0, 0][..], b"{\"\xff\""].concat(), &["UTF-8"]);
}

#[test]
fn refuses_a_huge_header_without_reading_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("attack.safetensors");
    let sparse = File::create(&path).unwrap();
    crate::reader::handles::write_at(&sparse, 0, &200_000_000u64.to_le_bytes()).unwrap();
    sparse.set_len(300_000_000).unwrap();
    let message = read_header(&path).unwrap_err().to_string();
    assert!(message.contains("claims 200000000 bytes; accepted"), "{message}");
}

#[test]
fn refuses_contradicting_names() {
    let t = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    refuses(&file(&format!("{{\"w\":{t},\"w\":{t}}}"), 1), &["`w` occurs twice"]);
    refuses(&file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), &["occurs twice"]);
    refuses(&file(r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0), &["`a` occurs twice"]);
    refuses(
        &file(&one(r#"{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}"#), 1),
        &["`w`", "`dtype` occurs twice"],
    );
    refuses(&file(r#"{"__metadata__":{"a":[1]}}"#, 0), &["`a`", "string"]);
    refuses(&file(r#"{"__metadata__":{"a":1}}"#, 0), &["`a`"]);
}

#[test]
fn refuses_fields_that_are_missing_or_of_another_kind() {
    for (entry, text) in [
        ("null", "null"),
        ("7", "`w`"),
        ("{}", "`dtype` is missing"),
        (r#"{"dtype":"U8","data_offsets":[0,1]}"#, "`shape` is missing"),
        (r#"{"dtype":"U8","shape":[1]}"#, "`data_offsets` is missing"),
        (r#"{"dtype":[1],"shape":[1],"data_offsets":[0,1]}"#, "`dtype` is no string"),
        (r#"{"dtype":"U8","shape":"1","data_offsets":[0,1]}"#, "`shape` is no array"),
        (r#"{"dtype":"U8","shape":[1],"data_offsets":"0"}"#, "`data_offsets` is no array"),
        (r#"{"dtype":"U8","shape":[1],"data_offsets":[0]}"#, "1 numbers instead of 2"),
        (r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}"#, "3 numbers instead of 2"),
        (r#"{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}"#, "-1"),
        (r#"{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}"#, "1.5"),
        (r#"{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}"#, "-1"),
        (r#"{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,1]}"#, "`w`"),
    ] {
        refuses(&file(&one(entry), 1), &["`w`", text]);
    }
}

#[test]
fn refuses_dtypes_it_cannot_read() {
    let with = |dtype: &str| {
        let entry = format!("{{\"dtype\":\"{dtype}\",\"shape\":[2],\"data_offsets\":[0,1]}}");
        file(&one(&entry), 1)
    };
    refuses(&with("F4"), &["`w`", "F4 is not supported", "accepted: BOOL, U8"]);
    refuses(&with("F6_E2M3"), &["`w`", "F6_E2M3 is not supported"]);
    refuses(&with("f32"), &["`w`", "`f32` is unknown", "BF16"]);
}

#[test]
fn refuses_sizes_that_contradict_each_other() {
    let with = |shape: &str, offsets: &str, data| {
        let entry = format!("{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{offsets}}}");
        file(&one(&entry), data)
    };
    refuses(&with("[2]", "[0,4]", 4), &["`w`", "takes 8 bytes", "spans 4"]);
    refuses(&with("[1]", "[4,0]", 4), &["`w`", "begin at byte 4", "end at 0"]);
    refuses(&with("[1]", "[0,4]", 3), &["`w`", "end at byte 4", "3 bytes of data"]);
    refuses(&with("[1]", "[0,4]", 5), &["1 bytes follow the last tensor"]);
    refuses(&with("[1]", "[4,8]", 8), &["`w`", "begin at byte 4", "no holes"]);
    let huge = "18446744073709551615";
    refuses(&with(&format!("[{huge},{huge}]"), "[0,4]", 4), &["`w`", "64 bits"]);
    refuses(&with(&format!("[{huge}]"), "[0,4]", 4), &["`w`", "64 bits"]);
    // Would overflow before the zero is reached.
    refuses(&with(&format!("[{huge},2,0]"), "[0,0]", 0), &["`w`", "64 bits"]);
    refuses(&with("[1]", &format!("[0,{huge}]"), 4), &["`w`", "spans"]);
    refuses(&with("[4611686018427387903]", "[0,18446744073709551612]", 4), &["`w`", "cut off"]);
}

#[test]
fn refuses_overlaps_and_holes() {
    let pair = |a: &str, b: &str, data| {
        let t = |o: &str| format!("{{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":{o}}}");
        file(&format!("{{\"a\":{},\"b\":{}}}", t(a), t(b)), data)
    };
    assert!(read(&pair("[4,8]", "[0,4]", 8)).is_ok());
    refuses(&pair("[0,4]", "[2,6]", 6), &["`b`", "begin at byte 2, within those of a"]);
    refuses(&pair("[0,4]", "[0,4]", 4), &["`b`", "within those of a"]);
    refuses(&pair("[0,4]", "[5,9]", 9), &["`b`", "end at 4", "no holes"]);
    refuses(&pair("[0,4]", "[4,8]", 9), &["1 bytes follow"]);
}

/// A valid file written by the reference implementation.
fn reference() -> Vec<u8> {
    use ::safetensors::{Dtype, tensor::TensorView};
    let data = [1u8; 24];
    let view = |dtype, shape: &[usize]| TensorView::new(dtype, shape.to_vec(), &data).unwrap();
    let tensors = [
        ("a.weight", view(Dtype::F32, &[2, 3])),
        ("b", view(Dtype::BF16, &[12])),
        ("c", view(Dtype::I64, &[3, 1])),
    ];
    let metadata = [("format".to_string(), "pt".to_string())].into();
    ::safetensors::serialize(tensors, Some(metadata)).unwrap()
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes);
        let _ = read(&[&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat());
    }

    #[test]
    fn random_text_never_panics(text in r#"\{("(w|__metadata__|shape|dtype)":|[\[\]{},0-9-]|"U8"){0,30}"#) {
        let _ = read(&file(&text, 4));
    }

    #[test]
    fn whatever_is_accepted_is_sound(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = reference();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(header) = read(&bytes) {
            for (info, start, _) in header.tensors {
                prop_assert!(start + info.bytes() <= bytes.len() as u64);
            }
        }
    }

    #[test]
    fn other_numbers_never_panic(numbers in prop::collection::vec(prop_oneof![any::<u64>(), 0u64..9], 4)) {
        let [a, b, c, d] = numbers[..] else { unreachable!() };
        let entry = format!("{{\"dtype\":\"C64\",\"shape\":[{a},{b}],\"data_offsets\":[{c},{d}]}}");
        let _ = read(&file(&one(&entry), 8)).map(|h| h.tensors[0].0.bytes());
    }
}
