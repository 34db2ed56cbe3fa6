use std::collections::HashMap;
use std::ops::Range;

use ::safetensors::Dtype as Reference;
use ::safetensors::tensor::TensorView;

use super::*;
use crate::tensor::{Dtype, View};

/// Little-endian u16 numbers from `first` on.
fn numbers(first: u16, n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| first.wrapping_add(i as u16).to_le_bytes()).collect()
}

/// Writes U16 tensors with the reference implementation: name, shape, first number.
fn shard(path: &Path, tensors: &[(&str, &[usize], u16)]) {
    let data: Vec<_> =
        tensors.iter().map(|(_, shape, first)| numbers(*first, shape.iter().product())).collect();
    let views = tensors.iter().zip(&data).map(|((name, shape, _), data)| {
        (*name, TensorView::new(Reference::U16, shape.to_vec(), data).unwrap())
    });
    let metadata =
        HashMap::from([("from".into(), path.display().to_string()), ("format".into(), "pt".into())]);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).unwrap();
    }
    fs::write(path, ::safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

fn index(path: &Path, map: &[(&str, &str)]) {
    let map: serde_json::Map<_, _> = map.iter().map(|(k, v)| (k.to_string(), serde_json::json!(v))).collect();
    let json = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(path, json.to_string()).unwrap();
}

fn refuses(path: &Path, texts: &[&str]) {
    let message = Checkpoint::open(path).expect_err("should be refused").to_string();
    for text in texts {
        assert!(message.contains(text), "`{text}` is not in: {message}");
    }
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.tensors().iter().map(|t| t.info.name.as_str()).collect()
}

/// A GGUF file of one F32 tensor of four numbers, without key-values.
fn gguf_file(name: &str) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend((name.len() as u64).to_le_bytes());
    bytes.extend(name.as_bytes());
    bytes.extend([1u32.to_le_bytes(), [4, 0, 0, 0], [0; 4], [0; 4], [0; 4], [0; 4]].concat());
    bytes.resize(bytes.len().next_multiple_of(32) + 16, 1);
    bytes
}

#[test]
fn gguf_is_read_where_nothing_else_is_there() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    fs::write(root.join("m.gguf"), gguf_file("module.g")).unwrap();
    fs::write(root.join("config.json"), "[]").unwrap();
    let checkpoint = Checkpoint::open(root).unwrap();
    // names stay as they are, and the config is not for it
    assert_eq!(names(&checkpoint), ["module.g"]);
    assert!(checkpoint.gguf().is_some_and(|keys| keys.is_empty()) && checkpoint.config().is_none());
    // its content decides, not its name
    fs::write(root.join("m.safetensors"), gguf_file("s")).unwrap();
    assert_eq!(names(&Checkpoint::open(&root.join("m.safetensors")).unwrap()), ["s"]);
    fs::remove_file(root.join("m.safetensors")).unwrap();
    fs::write(root.join("n.gguf"), gguf_file("n")).unwrap();
    refuses(root, &["has several GGUF models: `m.gguf`, `n.gguf`; name the one that is meant"]);
    fs::remove_file(root.join("config.json")).unwrap();
    shard(&root.join("model.safetensors"), &[("a", &[4], 0)]);
    let checkpoint = Checkpoint::open(root).unwrap();
    assert_eq!(names(&checkpoint), ["a"]);
    let why = "weights that are not part of this checkpoint";
    assert_eq!(checkpoint.left_out()[0], ("m.gguf".into(), why.to_owned()));
    fs::write(root.join("x.gguf"), "GGML").unwrap();
    refuses(&root.join("x.gguf"), &["begins like no checkpoint that is read", "a .gguf file"]);
}

#[test]
fn a_file_with_the_config_beside_it() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("m.SafeTensors");
    shard(&path, &[("b", &[2, 3], 10), ("a", &[4], 0)]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(names(&checkpoint), ["a", "b"]);
    assert!(checkpoint.config().is_none() && checkpoint.companions().is_empty());
    assert!(!checkpoint.is_directory());
    assert_eq!(checkpoint.metadata()["format"], "pt");
    let t = &checkpoint.tensors()[1];
    assert_eq!((t.info.dtype, t.info.shape.as_slice(), t.file), (Dtype::U16, &[2, 3][..], 0));

    let source = checkpoint.source().unwrap();
    let mut out = [0; 12];
    source.read(1, 0, &mut out).unwrap();
    assert_eq!(out[..], numbers(10, 6));
    source.read(1, 4, &mut out[..4]).unwrap();
    assert_eq!(out[..4], numbers(12, 2));
    source.read(1, 12, &mut []).unwrap();
    // Past the tensor is an error, even where the file goes on.
    let message = source.read(0, 4, &mut out[..6]).unwrap_err().to_string();
    assert!(message.contains("`a`") && message.contains("internal"), "{message}");
    assert!(source.read(0, u64::MAX, &mut out).is_err());
    assert!(source.read(2, 0, &mut out).is_err());

    fs::write(tmp.path().join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
    assert_eq!(Checkpoint::open(&path).unwrap().config().unwrap()["model_type"], "llama");
    fs::write(tmp.path().join("config.json"), "not json").unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(checkpoint.config().is_none());
    assert_eq!(checkpoint.left_out()[0].0, Path::new("config.json"));
}

#[test]
fn views_are_gathered() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("m.safetensors");
    shard(&path, &[("w", &[6, 4], 0)]);
    let source = Checkpoint::open(&path).unwrap().source().unwrap();
    let at = |view, rows: Range<usize>, cols: Range<usize>| {
        let mut out = vec![0; rows.len() * cols.len() * 2];
        source.read_view(0, &view, rows, cols, &mut out).unwrap();
        let numbers = out.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
        numbers.collect::<Vec<_>>()
    };
    assert_eq!(at(View::contiguous(6, 4), 1..3, 0..4), [4, 5, 6, 7, 8, 9, 10, 11]);
    let transposed = View { offset: 0, rows: 4, cols: 6, row_stride: 1, col_stride: 4 };
    assert_eq!(at(transposed, 1..3, 2..5), [9, 13, 17, 10, 14, 18]);
    let odd = View { offset: 4, rows: 3, cols: 4, row_stride: 8, col_stride: 1 };
    assert_eq!(at(odd, 1..3, 0..4), [12, 13, 14, 15, 20, 21, 22, 23]);
    let mut short = [0; 4];
    assert!(source.read_view(0, &odd, 0..3, 0..4, &mut short).is_err());
    assert!(source.read_view(0, &View::contiguous(7, 4), 6..7, 0..2, &mut short).is_err());
}

#[test]
fn a_directory_with_an_index() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    shard(&root.join(one), &[("a", &[1], 0), ("extra", &[1], 0)]);
    shard(&root.join(two), &[("c", &[1], 0), ("b", &[1], 0)]);
    index(&root.join("model.safetensors.index.json"), &[("a", one), ("b", two), ("c", two)]);
    shard(&root.join("consolidated.safetensors"), &[("a", &[1], 0)]);
    shard(&root.join("original/other.safetensors"), &[("a", &[1], 0)]);
    for file in [
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "x.GGUF",
        ".git/HEAD",
        ".m.monoquant-abc/config.json",
        "tokenizer.json",
        ".gitattributes",
        "sub/deep/vocab.txt",
        "sub/config.json",
    ] {
        fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
        fs::write(root.join(file), "x").unwrap();
    }
    fs::write(root.join("config.json"), "{}").unwrap();

    let checkpoint = Checkpoint::open(root).unwrap();
    assert_eq!(names(&checkpoint), ["a", "b", "c"]);
    assert_eq!(checkpoint.files(), [root.join(one), root.join(two)]);
    assert!(checkpoint.metadata()["from"].ends_with(one), "the first file wins");
    assert!(checkpoint.is_directory() && checkpoint.config().is_some());
    let companions = [".gitattributes", "sub/config.json", "sub/deep/vocab.txt", "tokenizer.json"];
    assert_eq!(checkpoint.companions(), companions.map(PathBuf::from));
    let left_out: Vec<_> = checkpoint.left_out().iter().map(|(p, _)| p.to_str().unwrap()).collect();
    assert_eq!(
        left_out,
        [
            ".git",
            ".m.monoquant-abc",
            "consolidated.safetensors",
            one,
            "original/other.safetensors",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "x.GGUF"
        ]
    );
    assert!(checkpoint.left_out()[3].1.contains("`extra`"));

    fs::write(root.join("config.json"), "[]").unwrap();
    refuses(root, &["config.json", "not a JSON object"]);
}

#[test]
fn an_index_that_promises_too_much() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let path = root.join("model.safetensors.index.json");
    shard(&root.join("1.safetensors"), &[("a", &[1], 0)]);
    index(&path, &[("a", "1.safetensors"), ("b", "1.safetensors")]);
    refuses(root, &["1.safetensors", "index.json", "`b`"]);
    index(&path, &[("a", "1.safetensors"), ("b", "2.safetensors"), ("c", "sub/3.safetensors")]);
    refuses(root, &["index.json", "2 of 3 files are missing", "2.safetensors", "sub/3.safetensors"]);
    for file in ["../x.safetensors", "/etc/x.safetensors", "", ".", "sub/../../x.safetensors", "/"] {
        index(&path, &[("a", file)]);
        refuses(root, &["index.json", "`a`", "accepted: a file in the directory"]);
    }
    index(&path, &[("a", "config.json")]);
    refuses(root, &["`a`", "no .safetensors file"]);
    index(&path, &[]);
    refuses(root, &["lists no tensors"]);
    fs::write(&path, r#"{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}"#).unwrap();
    refuses(root, &["`a` occurs twice"]);
    for json in ["", "{}", "[]", r#"{"weight_map":{"a":1}}"#, r#"{"weight_map":["a"]}"#] {
        fs::write(&path, json).unwrap();
        refuses(root, &["index.json", "not the JSON expected"]);
    }
}

#[test]
fn directories_without_the_usual_index() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    refuses(root, &["has no weights", "accepted"]);
    fs::write(root.join("optimizer.pt"), "x").unwrap();
    fs::write(root.join("m.ggml"), "x").unwrap();
    refuses(root, &["`optimizer.pt`", "`m.ggml`", "accepted: a .safetensors file"]);
    fs::write(root.join("a.pth"), "x").unwrap();
    refuses(root, &["a.pth", "begins like no checkpoint", "accepted: a .safetensors file"]);
    fs::write(root.join("b.pt"), "x").unwrap();
    refuses(root, &["several files of torch: `a.pth`, `b.pt`; name the one"]);
    fs::write(root.join("pytorch_model.bin"), "x").unwrap();
    refuses(root, &["pytorch_model.bin", "begins like no checkpoint"]);

    shard(&root.join("z.safetensors"), &[("z", &[1], 0)]);
    assert_eq!(names(&Checkpoint::open(root).unwrap()), ["z"]);
    shard(&root.join("y.safetensors"), &[("y", &[1], 0)]);
    assert_eq!(names(&Checkpoint::open(root).unwrap()), ["y", "z"]);
    shard(&root.join("zz.safetensors"), &[("y", &[1], 0)]);
    refuses(root, &["zz.safetensors", "`y`", "also in", "y.safetensors"]);
    shard(&root.join("model.safetensors"), &[("m", &[1], 0)]);
    assert_eq!(names(&Checkpoint::open(root).unwrap()), ["m"]);

    index(&root.join("x.safetensors.index.json"), &[("y", "y.safetensors")]);
    assert_eq!(names(&Checkpoint::open(root).unwrap()), ["y"]);
    index(&root.join("w.safetensors.index.json"), &[("z", "z.safetensors")]);
    refuses(root, &["several indexes", "w.safetensors.index.json", "x.safetensors.index.json"]);
    index(&root.join("model.safetensors.index.json"), &[("z", "z.safetensors")]);
    assert_eq!(names(&Checkpoint::open(root).unwrap()), ["z"]);
}

#[test]
fn paths_that_are_no_checkpoint() {
    let tmp = tempfile::tempdir().unwrap();
    let absent = tmp.path().join("absent");
    refuses(&absent, &["absent", "no such file or directory"]);
    let text = tmp.path().join("m.bin");
    fs::write(&text, "x").unwrap();
    refuses(&text, &["m.bin", "begins like no checkpoint that is read", "accepted"]);
    let empty = tmp.path().join("m.safetensors");
    fs::write(&empty, "").unwrap();
    refuses(&empty, &["m.safetensors", "is empty"]);
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_in_circles() {
    use std::os::unix::fs::symlink;
    let tmp = tempfile::tempdir().unwrap();
    // As a hub's cache lays it out: names link to blobs.
    let (blobs, root) = (tmp.path().join("blobs"), tmp.path().join("snapshot"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(root.join("sub")).unwrap();
    shard(&blobs.join("aa"), &[("w", &[1], 0)]);
    fs::write(blobs.join("bb"), "{}").unwrap();
    symlink("../blobs/aa", root.join("model.safetensors")).unwrap();
    symlink("../blobs/bb", root.join("config.json")).unwrap();
    symlink("../blobs/bb", root.join("tokenizer.json")).unwrap();
    symlink("../..", root.join("sub/up")).unwrap();
    symlink("../blobs/cc", root.join("gone.json")).unwrap();
    let checkpoint = Checkpoint::open(&root).unwrap();
    assert_eq!(names(&checkpoint), ["w"]);
    assert!(checkpoint.config().is_some());
    assert_eq!(checkpoint.companions(), [Path::new("tokenizer.json")]);
    let left_out: Vec<_> = checkpoint.left_out().iter().map(|(p, why)| (p.to_str().unwrap(), why)).collect();
    assert_eq!(left_out.len(), 2, "{left_out:?}");
    assert!(left_out[0].0 == "gone.json" && left_out[0].1.contains("leads nowhere"));
    assert!(left_out[1].0 == "sub/up" && left_out[1].1.contains("or above"));

    fs::remove_file(blobs.join("aa")).unwrap();
    refuses(&root, &["model.safetensors is a symlink that leads nowhere"]);
}

#[test]
fn many_files_are_not_all_open() {
    let tmp = tempfile::tempdir().unwrap();
    for i in 0..100 {
        shard(&tmp.path().join(format!("{i:03}.safetensors")), &[(&format!("{i}"), &[2], i)]);
    }
    let checkpoint = Checkpoint::open(tmp.path()).unwrap();
    let source = checkpoint.source().unwrap();
    std::thread::scope(|scope| {
        for t in 0..4 {
            let source = &source;
            scope.spawn(move || {
                for i in (0..100).map(|i| (i * 7 + t * 13) % 100) {
                    let mut out = [0; 4];
                    source.read(i, 0, &mut out).unwrap();
                    assert_eq!(out[..], numbers(i as u16, 2));
                }
            });
        }
    });
    assert_eq!(source.open_files(), handles::OPEN);
}
