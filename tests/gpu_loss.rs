//! A GPU that is lost under way: the CPU does the rest, with the same bytes, and it is said.

mod common;

use common::*;
use monoquant::tensor::Float;

/// Layouts, sweeps over several tiles, casts.
const RECIPES: [&[&str]; 4] = [
    &["--bits", "4", "--group-size", "32", "--observer", "mse"],
    &["--bits", "8", "--strategy", "tensor", "--observer", "histogram"],
    &["--bits", "4", "--group-size", "16", "--format", "gptq,awq"],
    &["--preset", "bf16"],
];

fn read(folder: &Folder, name: &str) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in names(&folder.path(name)) {
        let path = folder.path(name).join(&entry);
        match path.is_dir() {
            true => files.extend(read(folder, &format!("{name}/{entry}"))),
            false => files.push((entry, std::fs::read(path).unwrap())),
        }
    }
    files
}

#[test]
fn the_cpu_goes_on_where_a_gpu_was_lost() {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::F32), &llama_config());
    let model = folder.text("model");
    for recipe in RECIPES {
        let on = |out: &str, device: &str, more: &[&str]| {
            let out = folder.text(out);
            let command = ["quantize", "-m", &model, "-o", &out, "-f", "--tile-bytes", "4096", "-d", device];
            ok(&[&command[..], recipe, more].concat())
        };
        on("cpu", "cpu", &[]);
        let whole = on("gpu", "gpu", &[]);
        let expected = read(&folder, "cpu");
        assert!(read(&folder, "gpu") == expected);
        assert!(!whole["device"].as_str().unwrap().contains("failed"));
        // every tile has one dispatch of one of these in its last pass: not more tiles than that
        let most =
            whole["dispatches"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).max().unwrap();
        // in the check before the job; at the first tile; on the way; and wherever the last one is, at or before `most`
        let mut lost = 0;
        for after in [0, 1, 2, most / 3, most / 2, most - 1, most] {
            let report = on("out", "gpu", &["--lose-gpu-after", &after.to_string()]);
            assert!(read(&folder, "out") == expected, "{recipe:?}, lost after {after}");
            let warnings = report["warnings"].to_string();
            let said = warnings.contains("the CPU computed the rest, with the same bytes");
            assert_eq!(
                said,
                report["device"].as_str().unwrap().contains("failed after"),
                "{after}: {warnings}"
            );
            assert!(said || after >= most / 3, "{after}: {warnings}");
            lost += u32::from(said);
            let told = |report: &serde_json::Value, key: &str| -> Vec<_> {
                report["tensors"].as_array().unwrap().iter().map(|t| t[key].clone()).collect()
            };
            for key in ["name", "action", "sqnr_db"] {
                assert_eq!(told(&report, key), told(&whole, key));
            }
        }
        assert!(lost >= 4, "{lost}");
    }
}

#[test]
fn the_last_tile_is_lost_too_and_the_command_says_so() {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::BF16), &llama_config());
    let (model, out) = (folder.text("model"), folder.text("out"));
    let whole = ok(&["quantize", "-m", &model, "-o", &folder.text("cpu"), "-b", "8", "-d", "cpu"]);
    // a tile a layer
    let tiles = whole["dispatches"]["quantize"].as_u64().unwrap();
    for device in ["gpu", "gpu:0", "gpu:0,cpu"] {
        for more in [&[][..], &["--quiet"]] {
            // of several devices, the GPU may take no tile: it is lost in the check
            let after = if device.contains("cpu") { 0 } else { tiles }.to_string();
            let command = ["quantize", "-m", &model, "-o", &out, "-b", "8", "-f", "-d", device];
            let output = run(&[&command[..], &["--lose-gpu-after", &after], more].concat());
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{device}: {text}");
            assert!(
                text.contains("warning: ") && text.contains("the CPU computed the rest"),
                "{device}: {text}"
            );
            assert!(read(&folder, "out") == read(&folder, "cpu"), "{device}");
        }
    }
    // whichever tiles the GPU of several takes
    for after in ["1", "2", "5", "9"] {
        let tiles = ["--tile-bytes", "2048", "--lose-gpu-after", after];
        let command = ["quantize", "-m", &model, "-o", &out, "-b", "8", "-f", "-d", "gpu:0,cpu"];
        ok(&[&command[..], &tiles].concat());
        assert!(read(&folder, "out") == read(&folder, "cpu"), "{after}");
    }
}

#[test]
fn layers_are_dequantized_by_the_cpu_where_the_gpu_was_lost() {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::BF16), &llama_config());
    for format in ["compressed-tensors", "gptq"] {
        let (coded, out) = (folder.text("coded"), folder.text("out"));
        ok(&[
            "quantize",
            "-m",
            &folder.text("model"),
            "-o",
            &coded,
            "-b",
            "4",
            "-f",
            "--group-size",
            "32",
            "--format",
            format,
        ]);
        ok(&["dequantize", "-m", &coded, "-o", &folder.text("cpu"), "-f", "-d", "cpu"]);
        for after in ["1", "9", "14"] {
            let report =
                ok(&["dequantize", "-m", &coded, "-o", &out, "-f", "-d", "gpu", "--lose-gpu-after", after]);
            assert!(report["warnings"].to_string().contains("the CPU computed the rest"), "{after}");
            assert!(read(&folder, "out") == read(&folder, "cpu"), "{after}");
        }
    }
}
