//! Directories whose index of torch's files lies.

use crate::{archive::around, opcodes::*, open, says};
use std::fs;

#[test]
fn indexes_that_lie() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("model");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a.bin"), around(&pickle(&dict(&[("w", sound())])))).unwrap();
    fs::write(folder.path().join("b.bin"), around(&pickle(&dict(&[("v", sound())])))).unwrap();
    let outside = folder.path().join("b.bin").display().to_string();
    let map = |map: &str| format!(r#"{{"metadata":{{}},"weight_map":{map}}}"#);
    let deep = format!("{}{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    let inside = "accepted: a file in the directory";
    let json = "is not the JSON expected here";
    let cases: &[(&str, String, &[&str])] = &[
        ("a missing file", map(r#"{"w":"a.bin","v":"c.bin"}"#), &["1 of 2 files are missing: c.bin"]),
        (
            "a missing tensor",
            map(r#"{"w":"a.bin","v":"a.bin"}"#),
            &["a.bin: lacks what", "promises to be there: `v`"],
        ),
        (
            "a file above",
            map(r#"{"w":"a.bin","v":"../b.bin"}"#),
            &["tensor `v` is said to lie in `../b.bin`", inside],
        ),
        ("a detour", map(r#"{"w":"a.bin","v":"x/../../b.bin"}"#), &["`x/../../b.bin`", inside]),
        ("an absolute path", map(&format!(r#"{{"w":"a.bin","v":"{outside}"}}"#)), &[&outside, inside]),
        ("no file", map(r#"{"w":""}"#), &["tensor `w` is said to lie in ``", inside]),
        ("the directory", map(r#"{"w":"."}"#), &["tensor `w` is said to lie in `.`", inside]),
        ("a NUL", map(r#"{"w":"a\u0000.bin"}"#), &["1 of 1 files are missing"]),
        ("another kind", map(r#"{"w":"a.safetensors"}"#), &["`a.safetensors`, which is no .bin file"]),
        ("no tensors", map("{}"), &["`weight_map` lists no tensors"]),
        ("a tensor twice", map(r#"{"w":"a.bin","w":"b.bin"}"#), &["`w` occurs twice"]),
        ("numbers", map(r#"{"w":1}"#), &[json]),
        ("a list", map(r#"["w"]"#), &[json]),
        ("nothing", String::new(), &[json]),
        ("braces", deep.clone(), &[json]),
        ("braces beside", format!(r#"{{"metadata":{deep},"weight_map":{{"w":"a.bin"}}}}"#), &[json]),
    ];
    let index = root.join("pytorch_model.bin.index.json");
    for (what, text, parts) in cases {
        fs::write(&index, text).unwrap();
        let opened = open(&root);
        says(what, &opened.result.expect_err(what), parts);
        assert!(opened.memory < 4 << 20 && opened.read < 4 << 20, "{what}");
    }
    fs::write(&index, map(r#"{"w":"a.bin"}"#)).unwrap();
    assert_eq!(open(&root).result.unwrap().tensors().len(), 1);
    fs::write(root.join("config.json"), deep).unwrap();
    says("a deep config", &open(&root).result.unwrap_err(), &["config.json", json]);
}
