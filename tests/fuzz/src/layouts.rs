//! Any bytes as a config.json, a byte of 255, and a safetensors file of quantized layers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let split = bytes.iter().position(|&b| b == 255);
    let (config, file) = split.map_or((&b"{}"[..], bytes), |at| (&bytes[..at], &bytes[at + 1..]));
    fuzz::put("config.json", config);
    fuzz::with_file("model.safetensors", file, fuzz::layers);
});
