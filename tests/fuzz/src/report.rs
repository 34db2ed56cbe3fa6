//! Any bytes as a report, for `monoquant verify` and `monoquant reproduce`.
#![no_main]

use monoquant::{reproduce::Recorded, verify::files};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::with_file("report.json", bytes, |path| {
    let files = files::read_report(path).and_then(|report| files::of_report(path, &report));
    match Recorded::read(path) {
        Ok(recorded) => assert_eq!(recorded.files, files.unwrap()),
        Err(e) => fuzz::sound(e),
    }
}));
