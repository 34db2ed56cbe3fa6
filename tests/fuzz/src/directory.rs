//! Any bytes as a model's index, a byte of 255, and its config.json: opened, and planned in several ways.
#![no_main]

use std::fs;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = fuzz::place("model");
    fs::create_dir_all(&folder).unwrap();
    for name in ["a", "b"] {
        let header = format!(r#"{{"{name}.weight":{{"dtype":"BF16","shape":[2,8],"data_offsets":[0,32]}}}}"#);
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 32]].concat();
        let path = folder.join(name).with_extension("safetensors");
        if !path.exists() {
            fs::write(path, file).unwrap();
        }
    }
    let split = bytes.iter().position(|&b| b == 255);
    let (index, config) = split.map_or((bytes, &b"{}"[..]), |at| (&bytes[..at], &bytes[at + 1..]));
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    fs::write(folder.join("config.json"), config).unwrap();
    fuzz::within(bytes.len(), || {
        fuzz::planned(&folder, "out", &["--bits\n8", "--bits\n4\n--group-size\n8\n--format\ngptq,awq", "--bits\n16"]);
        drop(monoquant::inspect::inspect(&folder));
        monoquant::validate::validate(&folder).map(drop).unwrap_or_else(fuzz::sound);
    });
});
