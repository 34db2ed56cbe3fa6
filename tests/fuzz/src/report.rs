//! Any bytes as a report, for `monoquant verify` and `monoquant reproduce`.
#![no_main]

use monoquant::{reproduce::Recorded, verify::files};
use std::{
    collections::HashSet,
    path::{Component, Path},
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::with_file("report.json", bytes, |path| {
    let files = files::read_report(path).and_then(|report| files::of_report(path, &report));
    for file in files.iter().flatten() {
        let mut parts = Path::new(&file.name).components();
        assert!(parts.all(|part| matches!(part, Component::Normal(_))), "{file:?} leads out of the output");
    }
    let names = files.iter().flatten().map(|file| &file.name).collect::<HashSet<_>>();
    assert_eq!(names.len(), files.iter().flatten().count(), "a file is there twice");
    match Recorded::read(path) {
        Ok(recorded) => assert_eq!(recorded.files, files.unwrap()),
        Err(e) => fuzz::sound(e),
    }
}));
