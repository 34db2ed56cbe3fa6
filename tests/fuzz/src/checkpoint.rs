//! Any bytes as a file of torch, or of GGUF: the content decides.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::with_file("x.pt", bytes, fuzz::open));
