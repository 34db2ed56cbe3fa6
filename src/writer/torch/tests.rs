use super::*;
use crate::tensor::Dtype;

const GIB: usize = 1 << 30;

fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.into(), dtype, shape: shape.to_vec() }
}

/// Every tensor under its own name.
fn plain(tensors: &[TensorInfo]) -> Archive {
    let entries: Vec<_> = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
    place("model", tensors, &entries, &BTreeMap::new()).unwrap()
}

fn refusal(folder: &str, tensors: &[TensorInfo], entries: &[(&str, usize)]) -> String {
    let entries: Vec<_> = entries.iter().map(|&(key, t)| (key.to_string(), t)).collect();
    place(folder, tensors, &entries, &BTreeMap::new()).unwrap_err()
}

/// Asserts that pieces and tensors cover the file, each byte once, and that tensors are aligned.
fn assert_covered(archive: &Archive) {
    let closing = archive.closing(&vec![7; archive.spans.len()]);
    let pieces = archive.fixed.iter().chain(&closing).map(|(at, bytes)| (*at, bytes.len() as u64));
    let data = archive.spans.iter().copied().filter(|(_, bytes)| *bytes > 0);
    let mut all: Vec<_> = pieces.chain(data).collect();
    all.sort_unstable();
    let end = all.iter().fold(0, |end, &(at, bytes)| {
        assert_eq!(at, end, "a gap or an overlap");
        at + bytes
    });
    assert_eq!(end, archive.size);
    assert!(archive.spans.iter().all(|(at, _)| at.is_multiple_of(ALIGNMENT)));
}

/// The bytes of the whole file.
fn file(archive: &Archive, data: &[&[u8]]) -> Vec<u8> {
    let crcs: Vec<u32> = data.iter().map(|d| crc32fast::hash(d)).collect();
    let mut file = vec![0; archive.size as usize];
    for (at, bytes) in archive.fixed.iter().chain(&archive.closing(&crcs)) {
        file[*at as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    for (&(at, bytes), data) in archive.spans.iter().zip(data) {
        file[at as usize..][..bytes as usize].copy_from_slice(data);
    }
    file
}

fn record<'a>(archive: &'a Archive, name: &str) -> &'a Record {
    archive.records.iter().find(|r| r.name == format!("model/{name}")).unwrap()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|w| w == part)
}

#[test]
fn pieces_cover_the_file() {
    assert_covered(&plain(&[]));
    let all: Vec<_> = Dtype::ALL.iter().map(|d| tensor(d.name(), *d, &[3, 5])).collect();
    assert_covered(&plain(&all));
    let odd = [&[][..], &[0], &[0, 7], &[7, 0], &[1], &[63], &[64], &[65], &[1, 2, 3, 4, 5]];
    let odd: Vec<_> = odd.iter().map(|s| tensor(&format!("größe {s:?}"), Dtype::U8, s)).collect();
    assert_covered(&plain(&odd));
    assert_covered(&plain(&[tensor("a", Dtype::F32, &[3, GIB]), tensor("b", Dtype::U8, &[0])]));
}

#[test]
fn equal_inputs_give_equal_bytes() {
    let tensors = [tensor("a", Dtype::F16, &[2]), tensor("b", Dtype::U64, &[1])];
    let data: [&[u8]; 2] = [b"abcd", b"efghijkl"];
    assert_eq!(file(&plain(&tensors), &data), file(&plain(&tensors), &data));
    let (one, other) = (plain(&tensors).closing(&[1, 2]), plain(&tensors).closing(&[1, 3]));
    let places = |pieces: &[Piece]| pieces.iter().map(|(at, b)| (*at, b.len())).collect::<Vec<_>>();
    assert_eq!(places(&one), places(&other), "places depend on the data");
    assert_ne!(one, other);
}

#[test]
fn archive_is_what_torch_writes() {
    let archive = plain(&[tensor("w", Dtype::F32, &[1])]);
    let bytes = file(&archive, &[&[0, 0, 0x40, 0x40]]);
    let header = b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x0e\0\x14\0\
        model/data.pklFB\x10\0ZZZZZZZZZZZZZZZZ";
    assert_eq!(&bytes[..64], header);
    let w = record(&archive, "data/0");
    // The CRC is what torch wrote for a tensor of one 3.0.
    let descriptor = b"PK\x07\x08\x89\xd1\xe1\xa7\x04\0\0\0\x04\0\0\0";
    assert_eq!(&bytes[(w.data + 4) as usize..][..16], descriptor);
    let names: Vec<_> = archive.records.iter().map(|r| r.name.strip_prefix("model/").unwrap()).collect();
    let small = ["data.pkl", ".format_version", ".storage_alignment", "byteorder"];
    assert_eq!(names[..4], small);
    assert_eq!(names[4..], ["data/0", "version", ".data/serialization_id"]);
}

#[test]
fn pickle_is_what_torch_reads() {
    let (w, v) = (tensor("w", Dtype::F32, &[2, 3]), tensor("v", Dtype::U16, &[3]));
    let attributes = BTreeMap::from([("note".to_string(), "ü".to_string())]);
    let p = pickle::state_dict(&[("w", 0, &w), ("v", 1, &v)], &attributes);
    let expected = [
        &b"\x80\x02ccollections\nOrderedDict\nq\0)R("[..],
        b"X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\nq\x01((X\x07\0\0\0storageq\x02ctorch\nFloatStorage\nq\x03",
        b"X\x01\0\0\x000X\x03\0\0\0cpuq\x04K\x06tQK\0K\x02K\x03\x86K\x03K\x01\x86\x89h\0)RtR",
        b"X\x01\0\0\0vctorch._utils\n_rebuild_tensor_v3\nq\x05((h\x02ctorch.storage\nUntypedStorage\nq\x06",
        b"X\x01\0\0\x001h\x04K\x06tQK\0K\x03\x85K\x01\x85\x89h\0)Rctorch\nuint16\nq\x07tR",
        b"u}(X\x04\0\0\0noteX\x02\0\0\0\xc3\xbcub.",
    ];
    assert_eq!(p.escape_ascii().to_string(), expected.concat().escape_ascii().to_string());
}

#[test]
fn integers_take_the_form_that_holds_them() {
    let shape = [255, 256, 65_536, 0];
    let small = tensor("s", Dtype::U8, &shape);
    let p = pickle::state_dict(&[("s", 0, &small)], &BTreeMap::new());
    assert!(contains(&p, b"(K\xffM\x00\x01J\x00\x00\x01\x00K\x00t"), "the shape");
    let large = [(1, 0x7fff_ffff), (1, 0x8000_0000), (1, 0xff_ffff_ffff)].map(|s: (usize, usize)| [s.0, s.1]);
    for (shape, form) in large.iter().zip([
        &b"J\xff\xff\xff\x7f"[..],
        b"\x8a\x05\x00\x00\x00\x80\x00",
        b"\x8a\x06\xff\xff\xff\xff\xff\x00",
    ]) {
        let large = tensor("l", Dtype::U8, shape);
        let p = pickle::state_dict(&[("l", 0, &large)], &BTreeMap::new());
        assert!(contains(&p, form), "{shape:?}");
    }
}

#[test]
fn tied_keys_share_a_record() {
    let tensors = [tensor("a", Dtype::U8, &[4]), tensor("b", Dtype::U8, &[8])];
    let entries = [("x", 1), ("y", 0), ("z", 1)].map(|(key, t)| (key.to_string(), t));
    let archive = place("model", &tensors, &entries, &BTreeMap::new()).unwrap();
    assert_covered(&archive);
    assert_eq!(archive.spans[1], (record(&archive, "data/0").data, 8), "numbered in order of use");
    assert_eq!(archive.spans[0], (record(&archive, "data/1").data, 4));
    assert_eq!(archive.records.len(), 8);
}

#[test]
fn zip64_begins_where_32_bits_end() {
    for (size, wide) in [(4 * GIB - 2, false), (4 * GIB - 1, true), (4 * GIB, true)] {
        let archive = plain(&[tensor("a", Dtype::U8, &[size])]);
        assert_covered(&archive);
        let a = record(&archive, "data/0");
        assert_eq!(a.descriptor(0).len(), if wide { 24 } else { 16 });
        let extra = [&[1, 0, 16, 0][..], &(size as u64).to_le_bytes(), &[0; 8]].concat();
        assert_eq!(contains(&a.local_header(), &extra), wide, "{size}");
        assert_eq!(a.zip64(a.size).len(), if wide { 20 } else { 0 });
        // Past 4 GiB, small records need their offset in 64 bits.
        let version = record(&archive, "version");
        assert!(version.header > ZIP64);
        assert_eq!(version.zip64(2), [&[1, 0, 8, 0][..], &version.header.to_le_bytes()].concat());
        assert_eq!(version.descriptor(0).len(), 24);
        assert!(contains(&version.central_header(0), &[0xff; 4]));
    }
    let both = plain(&[tensor("a", Dtype::U8, &[5 * GIB]), tensor("b", Dtype::F32, &[3, GIB])]);
    assert_covered(&both);
    assert_eq!(record(&both, "data/1").zip64(0).len(), 28);
}

#[test]
fn more_entries_than_16_bits() {
    let tensors: Vec<_> = (0..66_000).map(|i| tensor(&format!("t{i}"), Dtype::U8, &[i % 3])).collect();
    let archive = plain(&tensors);
    assert_covered(&archive);
    let closing = archive.closing(&vec![0; tensors.len()]);
    let (at, last) = closing.last().unwrap();
    assert_eq!(at + last.len() as u64, archive.size);
    let (end64, end) = last[last.len() - 98..].split_at(76);
    assert_eq!(end64[24..32], 66_006u64.to_le_bytes());
    assert_eq!(end[8..12], [0xff; 4]);
}

#[test]
fn what_cannot_be_stored_is_refused() {
    let a = [tensor("a", Dtype::F64, &[2])];
    assert!(refusal("model", &a, &[("k", 0), ("k", 0)]).contains("`k`: the name is taken"));
    assert!(refusal("model", &a, &[]).contains("`a` has no key"));
    assert!(refusal("model", &a, &[("k", 1)]).contains("no tensor for `k`"));
    for folder in ["", ".", "..", "a/b", "a\\b", "a\0", "größe", &"x".repeat(65_530)] {
        assert!(refusal(folder, &a, &[("k", 0)]).contains("folder"), "{folder}");
    }
    for shape in [&[usize::MAX][..], &[1 << 61], &[1 << 32, 1 << 32], &[1 << 40, 1 << 40, 0]] {
        let large = [tensor("large", Dtype::F64, shape)];
        assert_eq!(refusal("model", &large, &[("k", 0)]), "tensor `large` is too large");
    }
    let two = ["a", "b"].map(|name| tensor(name, Dtype::U8, &[1 << 62]));
    assert_eq!(refusal("model", &two, &[("a", 0), ("b", 1)]), "the file would be too large");
}
