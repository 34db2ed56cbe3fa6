//! Any bytes as the pickle of a sound archive.
#![no_main]

#[path = "../../common/archive.rs"]
mod archive;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::with_file("x.pt", &archive::around(bytes), fuzz::open));
