//! `verify`, `quantize --verify` and `reproduce`: sound outputs of every layout pass, and no flipped bit goes unseen.

mod common;
#[path = "common/gguf.rs"]
mod files;

use common::*;
use monoquant::{
    kernels::cases::Random,
    reader::Checkpoint,
    tensor::Float,
    verify::{files as digests, verify},
};
use serde_json::Value;
use std::{fs, path::Path, sync::atomic::AtomicBool};

/// Checks an output, and returns what the command says as JSON.
fn verified(output: &str, input: &str) -> Value {
    ok(&["verify", output, "--against", input])
}

/// Runs the command, which must fail with exit code 1, and returns what it says.
fn differs(arguments: &[&str]) -> String {
    let output = run(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    text
}

/// A Llama whose weights hold ties, zeros and subnormals, too.
fn model(folder: &Folder, float: Float) -> String {
    let mut tensors = llama(float);
    for (i, kind) in ["ties", "zeros", "equal", "positive", "subnormal"].into_iter().enumerate() {
        let bytes = monoquant::kernels::cases::data(kind, 64 * 64, float, 3);
        let shape = vec![64, 64];
        tensors.insert(format!("model.layers.{i}.mlp.{kind}_proj.weight"), (dtype(float), shape, bytes));
    }
    directory(&folder.path("model"), &tensors, &llama_config());
    folder.text("model")
}

/// A GGUF model with rows of 256 weights.
fn gguf(folder: &Folder) -> String {
    let keys = [
        files::string("general.architecture", "llama"),
        files::number("general.file_type", 1),
        files::number("llama.block_count", 1),
    ];
    let float = |name: &str, dims: &[u64], seed: u64| {
        let shape: Vec<usize> = dims.iter().rev().map(|&d| d as usize).collect();
        files::tensor(name, dims, files::F16, &weights(&shape, Float::F16, seed).2)
    };
    let tensors = [
        float("token_embd.weight", &[256, 8], 1),
        float("blk.0.attn_q.weight", &[256, 16], 2),
        float("blk.0.attn_v.weight", &[256, 8], 3),
        float("blk.0.ffn_down.weight", &[512, 8], 4),
        float("output.weight", &[256, 8], 5),
    ];
    fs::write(folder.path("m.gguf"), files::Gguf::new(&keys, &tensors).bytes()).unwrap();
    folder.text("m.gguf")
}

const RECIPES: [&[&str]; 11] = [
    &["-b", "4", "--group-size", "32"],
    &["-b", "4", "--group-size", "32", "-s", "asymmetric"],
    &["-b", "4", "--strategy", "channel", "--observer", "minmax"],
    &["-b", "8"],
    &["-b", "8", "-s", "asymmetric", "--observer", "percentile", "--percentile", "97"],
    &["-b", "8", "--strategy", "tensor", "--observer", "histogram"],
    &["--preset", "w8a16", "--group-size", "32", "-s", "asymmetric"],
    &["-b", "4", "--group-size", "32", "--format", "gptq"],
    &["-b", "8", "--format", "gptq"],
    &["-b", "4", "--group-size", "32", "--format", "awq"],
    &["-b", "4", "--group-size", "32", "--format", "awq,gptq,compressed-tensors", "-s", "symmetric"],
];

/// Quantizations, and a cast to another dtype than the weights have.
fn recipes(float: Float) -> Vec<&'static [&'static str]> {
    let cast: &[&str] = if float == Float::F16 { &["--preset", "bf16"] } else { &["--preset", "fp16"] };
    RECIPES.into_iter().chain([cast]).collect()
}

#[test]
fn outputs_of_every_layout_and_dtype_are_what_they_were_made_from() {
    for float in Float::ALL {
        let folder = Folder::new();
        let (input, output) = (model(&folder, float), folder.text("out"));
        for recipe in recipes(float) {
            let run =
                [&["quantize", "-m", &input, "-o", &output, "-f", "-d", "cpu", "--verify"], recipe].concat();
            let report = ok(&[&run[..], &["--on-nonfinite", "keep", "--saturate"]].concat());
            let found = verified(&output, &input);
            assert_eq!(report["verified"], found, "the same while it is made and later");
            let tensors = found["layers"].as_u64().unwrap()
                + found["casts"].as_u64().unwrap()
                + found["copies"].as_u64().unwrap();
            let folders = if recipe.iter().any(|o| o.contains(',')) { 3 } else { 1 };
            let input = Checkpoint::open(Path::new(&input)).unwrap();
            assert_eq!(tensors, folders * input.tensors().len() as u64, "{recipe:?}: every tensor counts");
            let changed =
                report["tensors"].as_array().unwrap().iter().filter(|t| t["action"] != "kept").count();
            assert_eq!(tensors - found["copies"].as_u64().unwrap(), folders * changed as u64, "{recipe:?}");
            // halves of a step; a division in f32 may round a little beyond it, but f32 does not show that
            assert!(found["worst"].as_f64().unwrap() <= 0.5, "{recipe:?}");
            if recipe.contains(&"percentile") {
                assert!(found["clipped"].as_u64().unwrap() > 0, "what was cut off is counted");
            }
        }
    }
}

#[test]
fn containers_experts_and_ways_back_are_verified() {
    let folder = Folder::new();
    let input = model(&folder, Float::BF16);
    let mut tensors = llama(Float::BF16);
    tensors.insert("model.layers.0.mlp.experts.gate_up_proj".into(), weights(&[4, 64, 256], Float::BF16, 5));
    tensors.insert("model.layers.0.mlp.experts.down_proj".into(), weights(&[4, 128, 64], Float::BF16, 6));
    let mut config = llama_config();
    config["model_type"] = "llama4".into();
    config["num_local_experts"] = 4.into();
    directory(&folder.path("experts"), &tensors, &config);
    sharded(&folder.path("sharded"), &llama(Float::F32), &llama_config());
    let q = folder.text("q");
    for input in [input.as_str(), &folder.text("experts"), &folder.text("sharded")] {
        let recipe = ["-b", "4", "--group-size", "32", "--on-nonfinite", "keep", "--max-shard-size", "100KB"];
        let saved = folder.text("q.pt");
        for output in [&q, &saved] {
            ok(&[&["quantize", "-m", input, "-o", output, "-f", "--verify"], &recipe[..]].concat());
            verified(output, input);
            let back = folder.text("back");
            ok(&["dequantize", "-m", output, "-o", &back, "-f", "--verify", "--dtype", "f16"]);
            let found = verified(&back, output);
            assert!(found["casts"].as_u64().unwrap() > 14, "{found}");
            // they are not within a step of the first, but what they are of it can be said
            assert!(differs(&["verify", &back, "--against", input]).contains("the nearest to"));
        }
    }
    ok(&["quantize", "-m", &input, "-o", &q, "-f", "-b", "4", "--group-size", "32", "-s", "symmetric"]);
    ok(&["convert", "-m", &q, "--format", "gptq", "-o", &folder.text("g"), "--verify"]);
    let found = verified(&folder.text("g"), &q);
    assert_eq!(found["worst"], 0.0, "the same codes are no step away: {found}");
}

#[test]
fn gguf_blocks_are_verified() {
    let folder = Folder::new();
    let input = gguf(&folder);
    for preset in ["q8_0", "q4_0", "q4_1", "q4_k_s", "q4_k_m", "q6_k"] {
        let output = folder.text("q.gguf");
        ok(&["quantize", "-m", &input, "-o", &output, "-f", "--preset", preset, "--verify"]);
        let found = verified(&output, &input);
        assert_eq!(found["layers"], 5, "{preset}");
        ok(&["dequantize", "-m", &output, "-o", &folder.text("b.gguf"), "-f", "--verify"]);
        verified(&folder.text("b.gguf"), &output);
    }
}

/// Flips bits all over an output: each is found by the bounds, or by the report's SHA-256; and by the bounds alone wherever
/// a code or a kept tensor is hit.
fn flipped(output: &Path, report: &Path, input: &str, seed: u64) -> [usize; 2] {
    let against = Checkpoint::open(Path::new(input)).unwrap();
    let interrupted = AtomicBool::new(false);
    let report = digests::of_report(report, &digests::read_report(report).unwrap()).unwrap();
    let mut random = Random(seed);
    let mut found = [0, 0];
    for file in &report {
        let path = if output.is_file() { output.to_owned() } else { output.join(&file.name) };
        let sound = fs::read(&path).unwrap();
        // shapes and names, and 60 bits anywhere
        for _ in 0..60 {
            let mut bytes = sound.clone();
            let bit = random.next_u64() as usize % (8 * bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bytes).unwrap();
            let seen = verify(output, &against, 64 << 20, &interrupted);
            found[0] += usize::from(seen.is_err() || seen.is_ok_and(|v| v.result().is_err()));
            let problems = digests::check(output, &report).unwrap();
            assert_eq!(problems.len(), 1, "bit {bit} of {}", path.display());
            assert_eq!(problems[0].file, path);
            found[1] += 1;
        }
        fs::write(&path, &sound).unwrap();
    }
    assert!(digests::check(output, &report).unwrap().is_empty());
    found
}

#[test]
fn flipped_bits_are_found() {
    let folder = Folder::new();
    let input = model(&folder, Float::BF16);
    let report = folder.path("report.json");
    let saved = report.to_str().unwrap();
    for (i, recipe) in recipes(Float::BF16).into_iter().enumerate() {
        let output = folder.text("out");
        let given =
            ["quantize", "-m", &input, "-o", &output, "-f", "--report", saved, "--on-nonfinite", "keep"];
        ok(&[&given, recipe].concat());
        let [by_bounds, all] = flipped(Path::new(&output), &report, &input, i as u64);
        assert!(by_bounds > 0 && by_bounds <= all);
    }
    let input = gguf(&folder);
    for preset in ["q8_0", "q4_0", "q4_1", "q4_k_m", "q6_k"] {
        let output = folder.text("q.gguf");
        ok(&["quantize", "-m", &input, "-o", &output, "-f", "--report", saved, "--preset", preset]);
        let [by_bounds, _] = flipped(Path::new(&output), &report, &input, 9);
        assert!(by_bounds > 0, "{preset}");
    }
    let output = folder.text("q.pt");
    let input = folder.text("model");
    ok(&["quantize", "-m", &input, "-o", &output, "-f", "--report", saved, "--on-nonfinite", "keep"]);
    flipped(Path::new(&output), &report, &input, 3);
}

/// Flips a bit of every code, high scale, zero point and kept weight in turn: no digest is needed for these.
#[test]
fn codes_scales_zero_points_and_kept_weights_need_no_digest() {
    let folder = Folder::new();
    // no weight lies half-way between two codes
    let mut tensors = Tensors::new();
    tensors.insert("a.weight".into(), weights(&[8, 32], Float::F32, 1));
    tensors.insert("norm.weight".into(), weights(&[16], Float::BF16, 2));
    save(&folder.path("m.safetensors"), &tensors);
    let against = Checkpoint::open(&folder.path("m.safetensors")).unwrap();
    let interrupted = AtomicBool::new(false);
    for (recipe, parts) in [
        (&["--format", "awq"][..], ["a.qweight", "a.qzeros", "a.scales"]),
        (&["-s", "asymmetric"], ["a.weight_packed", "a.weight_zero_point", "a.weight_scale"]),
        (&["--format", "gptq"], ["a.qweight", "a.qzeros", "a.scales"]),
    ] {
        let (input, output) = (folder.text("m.safetensors"), folder.text("q.safetensors"));
        let given = ["quantize", "-b", "4", "--group-size", "32", "-m", &input, "-o", &output, "-f"];
        ok(&[&given, recipe].concat());
        let path = Path::new(&output);
        let sound = fs::read(path).unwrap();
        let stored = Checkpoint::open(path).unwrap();
        for (kind, name) in parts.into_iter().chain(["norm.weight"]).enumerate() {
            let tensor = stored.tensors().iter().find(|t| t.info.name == name).unwrap();
            for bit in 0..8 * tensor.info.bytes() {
                // the last digits of a scale may move no weight across the middle between two codes
                let element = 8 * tensor.info.dtype.size() as u64;
                let last = if tensor.info.dtype.float() == Some(Float::F16) { 8 } else { 21 };
                if kind == 2 && bit % element < last {
                    continue;
                }
                let mut bytes = sound.clone();
                bytes[(tensor.start + bit / 8) as usize] ^= 1 << (bit % 8);
                fs::write(path, &bytes).unwrap();
                match verify(path, &against, 64 << 20, &interrupted) {
                    Ok(found) => {
                        let problem = found.problems.first();
                        let problem = problem.unwrap_or_else(|| panic!("bit {bit} of {name} was not found"));
                        let expected = if kind == 3 { "norm.weight" } else { "a.weight" };
                        assert_eq!(problem.tensor.as_deref(), Some(expected));
                        assert_eq!(problem.file, path);
                        if kind == 3 {
                            assert_eq!(problem.index, Some(bit / 16));
                        }
                    }
                    // scales that are not finite, zero points that overflow
                    Err(e) => assert!(e.to_string().contains(name) || kind == 1, "{e}"),
                }
            }
        }
    }
}

#[test]
fn a_problem_names_file_tensor_weight_value_and_what_is_expected() {
    let folder = Folder::new();
    let values: Vec<f32> = (0..256).map(|i| (i % 16 - 8) as f32 + 0.25).collect();
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let tensor = |values: &[f32]| (safetensors::Dtype::F32, vec![8, 32], bytes(values));
    save(&folder.path("m.safetensors"), &Tensors::from([("a.weight".into(), tensor(&values))]));
    let mut other = values.clone();
    other[100] = -other[100];
    save(&folder.path("other.safetensors"), &Tensors::from([("a.weight".into(), tensor(&other))]));
    let (input, output) = (folder.text("m.safetensors"), folder.text("q.safetensors"));
    ok(&["quantize", "-m", &input, "-o", &output, "-b", "8"]);
    let text = differs(&["verify", &output, "--against", &folder.text("other.safetensors")]);
    assert!(text.contains(&format!("{output}: a.weight, weight 100: code ")), "{text}");
    assert!(text.contains("within") && text.contains("of 3.75e0"), "{text}");
    // a tensor too few, one too many, one of another shape
    let renamed = Tensors::from([("b.weight".into(), tensor(&values))]);
    save(&folder.path("other.safetensors"), &renamed);
    let text = differs(&["verify", &output, "--against", &folder.text("other.safetensors")]);
    assert!(text.contains("b.weight: is missing") && text.contains("a.weight: is there"), "{text}");
    let shaped = (safetensors::Dtype::F32, vec![16, 16], bytes(&values));
    save(&folder.path("other.safetensors"), &Tensors::from([("a.weight".into(), shaped)]));
    let text = differs(&["verify", &output, "--against", &folder.text("other.safetensors")]);
    assert!(text.contains("a.weight: shape [8, 32]; expected: [16, 16]"), "{text}");
}

#[test]
fn a_report_finds_what_no_weight_can_tell() {
    let folder = Folder::new();
    let (input, output, report) = (model(&folder, Float::BF16), folder.text("out"), folder.text("r.json"));
    ok(&["quantize", "-m", &input, "-o", &output, "--report", &report, "--on-nonfinite", "keep"]);
    let check = ["verify", &output, "--against", &input, "--report", &report];
    let files = ok(&check)["files"].as_u64().unwrap();
    assert_eq!(files, 4, "weights, config, tokenizer, notes");
    fs::write(folder.path("out/tokenizer.json"), "[]").unwrap();
    fs::remove_file(folder.path("out/extra/notes.txt")).unwrap();
    fs::write(folder.path("out/new.txt"), "new").unwrap();
    verified(&output, &input);
    let text = differs(&check);
    for part in ["tokenizer.json: SHA-256", "notes.txt: is missing", "new.txt: is there"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    fs::write(folder.path("empty.json"), "{}").unwrap();
    let text = refused(&["verify", &output, "--against", &input, "--report", &folder.text("empty.json")]);
    assert!(text.contains("holds no SHA-256"), "{text}");
}

#[test]
fn reproduce_makes_the_same_bytes_or_says_what_differs() {
    let folder = Folder::new();
    let (input, output, report) = (model(&folder, Float::BF16), folder.text("out"), folder.text("r.json"));
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
    verified(&again, &input);
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

/// A run that makes something else than it should, here by taking the weights of another layer.
#[test]
fn an_output_that_fails_does_not_appear() {
    use monoquant::quantize::{OnNonFinite, Settings, begin, open, prepare};
    let folder = Folder::new();
    let (input, output) = (model(&folder, Float::BF16), folder.path("out"));
    ok(&["quantize", "-m", &input, "-o", output.to_str().unwrap(), "--on-nonfinite", "keep"]);
    let before = fs::read(output.join("model.safetensors")).unwrap();
    for verify in [true, false] {
        let settings = Settings {
            output: Some(output.clone()),
            force: true,
            verify,
            device: monoquant::device::Choice::Cpu,
            ..Settings::default()
        };
        let (request, _) =
            monoquant::cli::request(&["-b".into(), "4".into(), "--group-size=32".into()]).unwrap();
        let mut prepared = prepare(Path::new(&input), &request, OnNonFinite::Keep, &settings).unwrap();
        let find = |name: &str| {
            prepared.plan.jobs.iter().position(|job| prepared.plan.rows[job.row].name.contains(name)).unwrap()
        };
        let (gate, up) = (find("layers.0.mlp.gate_proj"), find("layers.0.mlp.up_proj"));
        prepared.plan.jobs[gate].source = prepared.plan.jobs[up].source;
        let mut device = open(&prepared, &settings).unwrap();
        let run = begin(&prepared, &settings).unwrap();
        let done = run.run(&mut device, &settings, &AtomicBool::new(false), &|_| {});
        let now = fs::read(output.join("model.safetensors")).unwrap();
        if verify {
            let text = done.unwrap_err().to_string();
            let place = output.join("model.safetensors").display().to_string();
            assert!(
                text.starts_with(&format!("{place}: model.layers.0.mlp.gate_proj.weight, weight ")),
                "{text}"
            );
            assert!(now == before, "what stood there stands");
        } else {
            done.unwrap();
            assert!(now != before);
            let text = differs(&["verify", output.to_str().unwrap(), "--against", &input]);
            assert!(text.contains("gate_proj"), "{text}");
        }
        assert_eq!(names(folder.root()), ["model", "out"]);
    }
}
