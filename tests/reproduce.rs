//! `reproduce`: a run again from its report.

mod common;

use common::*;
use monoquant::tensor::Float;
use std::fs;

/// Runs the command, which must fail with exit code 1, and returns what it says.
fn differs(arguments: &[&str]) -> String {
    let output = run(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    text
}

#[test]
fn reproduce_makes_the_same_bytes_or_says_what_differs() {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::BF16), &llama_config());
    let (input, output, report) = (folder.text("model"), folder.text("out"), folder.text("r.json"));
    let given =
        ["quantize", "-m", &input, "-o", &output, "-f", "--report", &report, "--on-nonfinite", "keep"];
    let options: [&[&str]; 3] = [
        &["-b", "4", "--group-size", "32", "--format", "gptq,awq", "--exclude", "o_proj", "-s", "symmetric"],
        &["-b", "8", "--override", "down_proj=scheme=asymmetric", "--override", "up_proj=strategy=tensor"],
        &["--preset", "fp16", "--saturate", "--max-shard-size", "60KB"],
    ];
    for options in options {
        ok(&[&given, options].concat());
        let done = ok(&["reproduce", &report, "-d", "cpu"]);
        assert_eq!(done["differences"], serde_json::json!([]), "{options:?}");
        assert_eq!(names(folder.root()), ["model", "out", "r.json"], "what was made is gone again");
    }
    let again = folder.text("again");
    ok(&["reproduce", &report, "-o", &again]);
    ok(&["verify", &again, "--against", &input]);
    // the input has moved
    fs::rename(&input, folder.path("moved")).unwrap();
    let (moved, text) = (folder.text("moved"), refused(&["reproduce", &report]));
    assert!(text.contains("no such file"), "{text}");
    ok(&["reproduce", &report, "-m", &moved]);
    // another version
    let recorded = fs::read_to_string(&report).unwrap();
    let place = folder.path("moved/model.safetensors");
    let sound = fs::read(&place).unwrap();
    // one weight more or less, of the same size
    let header = 8 + u64::from_le_bytes(sound[..8].try_into().unwrap()) as usize;
    let mut bytes = sound.clone();
    bytes[header + 1] ^= 1;
    fs::write(&place, &bytes).unwrap();
    let text = differs(&["reproduce", &report, "-m", &moved]);
    assert!(text.contains("SHA-256") && text.contains("its content must have changed"), "{text}");
    assert!(text.contains("is the first tensor whose content differs"), "{text}");
    let version = format!("\"version\": \"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(recorded.contains(&version));
    fs::write(&report, recorded.replacen(&version, "\"version\": \"0.0.9\"", 1)).unwrap();
    let text = differs(&["reproduce", &report, "-m", &moved]);
    assert!(text.contains("and was 0.0.9"), "{text}");
    // with hashes of the input it is known which file
    fs::write(&place, &sound).unwrap();
    let given = ["quantize", "-m", &moved, "-o", &output, "-f", "--report", &report, "--hash-input"];
    ok(&[&given[..], &["--on-nonfinite", "keep"]].concat());
    fs::write(&place, &bytes).unwrap();
    let text = differs(&["reproduce", &report]);
    assert!(text.contains("input model.safetensors: its content has changed"), "{text}");
    fs::write(folder.path("moved/tokenizer.json"), "{ }").unwrap();
    let text = differs(&["reproduce", &report]);
    assert!(text.contains("input tokenizer.json: has 3 bytes, and had 2"), "{text}");
    let text = refused(&["reproduce", &report, "-o", &folder.text("x.pt")]);
    assert!(text.contains("the same ending"), "{text}");
}
