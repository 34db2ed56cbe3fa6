//! Any bytes as a safetensors file, quantized or not.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::with_file("x.safetensors", bytes, |path| {
    fuzz::open(path);
    drop(monoquant::inspect::inspect(path));
}));
