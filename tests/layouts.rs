//! GPTQ and AWQ: what is stored means what the layouts' descriptions say, several layouts come from one reading, and
//! convert goes from one to the other without loss.

mod common;

use common::*;
use monoquant::tensor::Float;
use serde_json::{Value, json};

fn half(bytes: &[u8], i: usize) -> f32 {
    Float::F16.decode(&bytes[2 * i..])
}

fn word(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes(bytes[4 * i..][..4].try_into().unwrap())
}

/// Weights of a GPTQ layer, an element at a time, as formats describe it.
fn decode_gptq(t: &Tensors, module: &str) -> Vec<f32> {
    let part = |name: &str| &t[&format!("{module}.{name}")];
    let (qweight, qzeros, scales, g_idx) = (part("qweight"), part("qzeros"), part("scales"), part("g_idx"));
    let (outputs, inputs) = (scales.1[1], g_idx.1[0]);
    let per = inputs / qweight.1[0];
    let bits = 32 / per;
    let mask = (1u32 << bits) - 1;
    let mut weights = Vec::new();
    for o in 0..outputs {
        for i in 0..inputs {
            let group = word(&g_idx.2, i) as usize;
            let q = word(&qweight.2, i / per * outputs + o) >> (i % per * bits) & mask;
            let z = (word(&qzeros.2, group * (outputs / per) + o / per) >> (o % per * bits) & mask) + 1;
            weights.push((q as i32 - z as i32) as f32 * half(&scales.2, group * outputs + o));
        }
    }
    weights
}

fn decode_awq(t: &Tensors, module: &str) -> Vec<f32> {
    let part = |name: &str| &t[&format!("{module}.{name}")];
    let (qweight, qzeros, scales) = (part("qweight"), part("qzeros"), part("scales"));
    let (groups, outputs, inputs) = (scales.1[0], scales.1[1], qweight.1[0]);
    let order = [0, 4, 1, 5, 2, 6, 3, 7]; // the nibble of output o % 8
    let nibble = |bytes: &[u8], line: usize, o: usize| {
        (word(bytes, line * (outputs / 8) + o / 8) >> (4 * order[o % 8]) & 15) as i32
    };
    let mut weights = Vec::new();
    for o in 0..outputs {
        for i in 0..inputs {
            let group = i / (inputs / groups);
            let (q, z) = (nibble(&qweight.2, i, o), nibble(&qzeros.2, group, o));
            weights.push((q - z) as f32 * half(&scales.2, group * outputs + o));
        }
    }
    weights
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| Float::F32.decode(b)).collect()
}

fn config(folder: &Folder, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder.path(name).join("config.json")).unwrap()).unwrap()
}

/// A layer whose codes take several slabs at the least memory, beside small ones.
fn model(folder: &Folder, float: Float) {
    let mut tensors = llama(float);
    tensors.insert("model.layers.0.mlp.big_proj.weight".into(), weights(&[2056, 4096], float, 5));
    directory(&folder.path("model"), &tensors, &llama_config());
}

#[test]
fn what_is_stored_is_what_dequantize_makes_of_it() {
    let folder = Folder::new();
    model(&folder, Float::BF16);
    for (format, recipe) in [
        ("gptq", &["-b", "4", "--group-size", "32"][..]),
        ("gptq", &["-b", "4", "--strategy", "channel"]),
        ("gptq", &["-b", "8", "--group-size", "64"]),
        ("gptq", &["-b", "8", "--observer", "mse"]),
        ("awq", &["-b", "4", "--group-size", "64"]),
        ("awq", &["-b", "4", "--group-size", "32", "-s", "symmetric", "--observer", "mse"]),
    ] {
        let [input, coded, back] = ["model", "coded", "back"].map(|n| folder.text(n));
        let small = ["--max-memory", "32MiB", "--tile-bytes", "100000", "-f"];
        let quantize = ["quantize", "-m", &input, "-o", &coded, "--format", format];
        ok(&[&quantize[..], recipe, &small].concat());
        ok(&[&["dequantize", "-m", &coded, "-o", &back, "--dtype", "f32"][..], &small].concat());
        assert!(run(&["validate", &coded]).status.success());
        let (stored, decoded) =
            (load(&folder.path("coded/model.safetensors")), load(&folder.path("back/model.safetensors")));
        let mut layers = 0;
        for module in stored.keys().filter_map(|name| name.strip_suffix(".qweight")) {
            let expected =
                if format == "gptq" { decode_gptq(&stored, module) } else { decode_awq(&stored, module) };
            let found = &decoded[&format!("{module}.weight")];
            assert!(floats(&found.2) == expected, "{format} {recipe:?} {module}");
            layers += 1;
        }
        assert_eq!(layers, 15);
        // and near to the original: a scrambled order decodes consistently, too
        let comparison = ok(&["compare", &input, &coded]);
        for layer in comparison["differences"].as_array().unwrap() {
            assert!(layer["sqnr_db"].as_f64().unwrap() > 3.0, "{format} {recipe:?} {layer}");
        }
        // the same with whole layers at once, and without memory to spare
        let other = folder.text("other");
        ok(&[&["quantize", "-m", &input, "-o", &other, "--format", format, "-f"][..], recipe].concat());
        let [a, b] =
            ["coded", "other"].map(|n| std::fs::read(folder.path(n).join("model.safetensors")).unwrap());
        assert!(a == b, "{format} {recipe:?}: bytes depend on memory");
    }
}

#[test]
fn several_formats_are_what_each_is_alone() {
    let folder = Folder::new();
    for float in [Float::BF16, Float::F16, Float::F32] {
        directory(&folder.path("model"), &llama(float), &llama_config());
        let input = folder.text("model");
        for recipe in [
            &["-b", "4", "--group-size", "32"][..],
            &["-b", "4", "--group-size", "64", "--observer", "mse", "--scheme", "symmetric"],
            &["-b", "4", "--group-size", "32", "--observer", "histogram"],
        ] {
            let formats = ["compressed-tensors", "gptq", "awq"];
            let quantize = |format: &str, name: &str, device: &str| {
                let output = folder.text(name);
                let quantize =
                    ["quantize", "-m", &input, "-o", &output, "--format", format, "--device", device];
                ok(&[&quantize[..], recipe, &["-f"]].concat())
            };
            let all = quantize("awq,gptq,compressed-tensors", "all", "cpu");
            quantize("awq,gptq,compressed-tensors", "gpu", "gpu");
            assert_eq!(names(&folder.path("all")), ["awq", "compressed-tensors", "gptq"]);
            let coded = |report: &serde_json::Value| {
                let of = |kernel| report["dispatches"][kernel].as_u64().unwrap_or(0);
                of("quantize") + of("quantize_pack")
            };
            let mut dispatches = 0;
            for format in formats {
                let alone = quantize(format, "alone", "cpu");
                assert_eq!(names(&folder.path("alone")), names(&folder.path("all").join(format)));
                for file in names(&folder.path("alone")).iter().filter(|f| *f != "extra") {
                    let read = |n: &str| std::fs::read(folder.path(n).join(file)).unwrap();
                    let [a, b] = ["all", "gpu"].map(|n| read(&format!("{n}/{format}")));
                    assert!(a == read("alone"), "{float:?} {recipe:?}: {format}/{file}");
                    assert!(b == a, "{float:?} {recipe:?}: {format}/{file} of the GPU");
                }
                dispatches += coded(&alone);
            }
            // grids that are equal are computed once: gptq and awq always share when symmetric, and f16 all three
            let grids = match (recipe.contains(&"symmetric"), float) {
                (true, Float::F16) => 1,
                (true, _) => 2,
                (false, Float::F16) => 2,
                (false, _) => 3,
            };
            assert_eq!(coded(&all), dispatches / 3 * grids);
        }
    }
}

#[test]
fn conversions_lead_back_without_loss() {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::F16), &llama_config());
    let convert = |from: &str, format: &str, to: &str| {
        let [from, to] = [from, to].map(|n| folder.text(n));
        ok(&["convert", "-m", &from, "--format", format, "-o", &to, "-f"]);
        assert!(run(&["validate", &to]).status.success(), "{to}");
        assert_eq!(ok(&["compare", &from, &to])["sqnr_db"], 999.0, "{from} to {to}");
    };
    let same = |a: &str, b: &str| {
        for file in ["model.safetensors", "config.json"] {
            let [a, b] = [a, b].map(|n| std::fs::read(folder.path(n).join(file)).unwrap());
            assert!(a == b, "{file}");
        }
    };
    let quantize = |to: &str, options: &[&str]| {
        let [from, to] = ["model", to].map(|n| folder.text(n));
        ok(&[&["quantize", "-m", &from, "-o", &to, "-f"], options].concat());
    };
    // f16 scales and symmetric codes: all three hold the same
    let symmetric = [
        "-b",
        "4",
        "--group-size",
        "32",
        "-s",
        "symmetric",
        "--observer",
        "mse",
        "--exclude",
        "layers.0.mlp.up",
    ];
    for (name, format) in [("ct", "compressed-tensors"), ("gptq", "gptq"), ("awq", "awq")] {
        quantize(name, &[&symmetric[..], &["--format", format]].concat());
    }
    for (from, format, to) in [
        ("ct", "gptq", "gptq"),
        ("gptq", "awq", "awq"),
        ("awq", "compressed-tensors", "ct"),
        ("ct", "awq", "awq"),
        ("awq", "gptq", "gptq"),
        ("gptq", "compressed-tensors", "ct"),
    ] {
        convert(from, format, "converted");
        same("converted", to);
    }
    let [ct, both] = ["ct", "both"].map(|n| folder.text(n));
    ok(&["convert", "-m", &ct, "--format", "gptq,awq", "-o", &both]);
    same("both/gptq", "gptq");
    same("both/awq", "awq");
    // asymmetric, 8 bits, channels
    quantize("ct", &["-b", "4", "--group-size", "32", "-s", "asymmetric"]);
    quantize("awq", &["-b", "4", "--group-size", "32", "--format", "awq", "-s", "asymmetric"]);
    convert("ct", "awq", "converted");
    same("converted", "awq");
    convert("awq", "compressed-tensors", "converted");
    same("converted", "ct");
    quantize("ct", &["--preset", "w8a16"]);
    quantize("gptq", &["-b", "8", "--format", "gptq"]);
    convert("ct", "gptq", "converted");
    same("converted", "gptq");
    convert("gptq", "compressed-tensors", "converted");
    same("converted", "ct");
    // codes of int8 that ran with int8 inputs: the weights stay what they are
    quantize("ct", &["--bits", "8"]);
    convert("ct", "gptq", "converted");
}

#[test]
fn conversions_that_would_lose_something_are_refused() {
    let folder = Folder::new();
    let [model, coded, out] = ["model", "coded", "out"].map(|n| folder.text(n));
    let case = |tensors: &Tensors, quantize: &[&str], format: &str, says: &[&str]| {
        directory(&folder.path("model"), tensors, &llama_config());
        ok(&[&["quantize", "-m", &model, "-o", &coded, "-f"], quantize].concat());
        let text = refused(&["convert", "-m", &coded, "--format", format, "-o", &out]);
        assert!(says.iter().all(|s| text.contains(s)), "{text}");
        assert!(!folder.path("out").exists());
    };
    let half = llama(Float::F16);
    let asymmetric = ["-b", "4", "--group-size", "32", "-s", "asymmetric"];
    case(
        &half,
        &asymmetric,
        "gptq",
        &["model.layers.0.mlp.down_proj.weight: gptq holds symmetric codes only"],
    );
    case(&half, &["-b", "8"], "awq", &["awq holds 4 bits, not 8"]);
    case(
        &half,
        &["-b", "4", "--strategy", "channel"],
        "awq",
        &["awq has groups of one size for all layers, and this one has scales by channel"],
    );
    case(
        &half,
        &["-b", "4", "--group-size", "32"],
        "compressed-tensors",
        &["is in the layout of compressed-tensors already"],
    );
    // a scale of bf16 that f16 does not have
    let mut tiny = llama(Float::BF16);
    for value in tiny.get_mut("model.layers.0.mlp.up_proj.weight").unwrap().2.chunks_exact_mut(2) {
        let x = Float::BF16.decode(value) * 2f32.powi(-20);
        let mut bytes = Vec::new();
        Float::BF16.encode(x, &mut bytes);
        value.copy_from_slice(&bytes);
    }
    case(
        &tiny,
        &["-b", "4", "--group-size", "32"],
        "gptq",
        &["up_proj.weight: gptq stores scales as F16, and scale", "would change"],
    );
    // nothing quantized, and what is no format
    let text = refused(&["convert", "-m", &model, "--format", "gptq", "-o", &out]);
    assert!(text.contains("no quantized layer found"), "{text}");
    let text = refused(&["convert", "-m", &coded, "--format", "gptq,gptq", "-o", &out]);
    assert!(text.contains("gptq is there twice"), "{text}");
    let file = folder.text("out.safetensors");
    directory(&folder.path("model"), &half, &llama_config());
    ok(&["quantize", "-m", &model, "-o", &coded, "-f", "-b", "4", "--group-size", "32"]);
    let text = refused(&["convert", "-m", &coded, "--format", "gptq,awq", "-o", &file]);
    assert!(text.contains("is one file, by the ending of its name; several formats go to folders"), "{text}");
}

#[test]
fn what_a_format_cannot_hold_is_refused_before_the_work() {
    let folder = Folder::new();
    let mut tensors = llama(Float::BF16);
    tensors.insert("model.layers.1.mlp.odd_proj.weight".into(), weights(&[12, 64], Float::BF16, 3));
    directory(&folder.path("model"), &tensors, &llama_config());
    let [model, out] = ["model", "out"].map(|n| folder.text(n));
    let quantize = |options: &[&str]| -> Vec<String> {
        let start = ["quantize", "-m", &model, "-o", &out, "--group-size", "32"];
        [&start[..], options].concat().into_iter().map(str::to_owned).collect()
    };
    let run_with = |options: &[&str], run: &dyn Fn(&[&str]) -> String| {
        let arguments = quantize(options);
        run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for (options, says) in [
        (
            &["-b", "4", "--format", "gptq"][..],
            "odd_proj.weight: gptq packs 8 outputs and 8 inputs a word, which do not divide its 12 outputs and 64 inputs",
        ),
        (&["-b", "4", "--format", "awq"], "odd_proj.weight: awq packs 8 outputs"),
        (&["-b", "8", "--format", "awq"], "awq holds 4 bits, not 8"),
        (&["-b", "4", "--format", "gptq", "-s", "asymmetric"], "gptq holds symmetric codes only"),
        (
            &["--preset", "w8a8", "--format", "gptq"],
            "gptq holds weights whose inputs stay in floating point; --preset w8a16 fits",
        ),
        (
            &["-b", "4", "--format", "gptq", "--layer-types", "linear,embedding"],
            "gptq holds linear layers only, and this is one of type embedding",
        ),
        (
            &["-b", "4", "--format", "awq", "--override", "k_proj=group-size=64"],
            "awq has groups of one size for all layers",
        ),
        (&["-b", "4", "--format", "gguf"], "possible values: compressed-tensors, gptq, awq"),
        (&["-b", "4", "--format", "awq,awq"], "awq is there twice"),
    ] {
        let text = run_with(options, &|all| refused(all));
        assert!(text.contains(says), "{options:?}: {text}");
        assert!(!folder.path("out").exists());
    }
    // the odd layer can be left as it is, in every format alike, and configs say so
    run_with(&["-b", "4", "--format", "gptq,awq", "--on-mismatch", "keep"], &|all| ok(all).to_string());
    let gptq = config(&folder, "out/gptq");
    let dynamic = gptq["quantization_config"]["dynamic"].as_object().unwrap();
    assert_eq!(dynamic.keys().collect::<Vec<_>>(), [r"-:^model\.layers\.1\.mlp\.odd_proj$"]);
    let ends = json!([[
        "mlp.down_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "self_attn.k_proj",
        "self_attn.o_proj",
        "self_attn.q_proj",
        "self_attn.v_proj"
    ]]);
    assert_eq!(gptq["quantization_config"]["modules_in_block_to_quantize"], ends);
    let copy: Value =
        serde_json::from_slice(&std::fs::read(folder.path("out/gptq/quantize_config.json")).unwrap())
            .unwrap();
    assert_eq!(copy, gptq["quantization_config"]);
    let awq = config(&folder, "out/awq");
    assert_eq!(
        awq["quantization_config"]["modules_to_not_convert"],
        json!(["lm_head", "model.layers.1.mlp.odd_proj"])
    );
    for format in ["gptq", "awq"] {
        assert!(run(&["validate", &format!("{out}/{format}")]).status.success(), "{format}");
    }
}

#[test]
fn a_name_within_another_cannot_be_left_out_of_awq() {
    let folder = Folder::new();
    let mut tensors = llama(Float::F16);
    tensors.insert("model.layers.0.mlp.up.weight".into(), weights(&[64, 64], Float::F16, 3));
    directory(&folder.path("model"), &tensors, &llama_config());
    let [model, out] = ["model", "out"].map(|n| folder.text(n));
    let quantize =
        ["quantize", "-m", &model, "-o", &out, "-b", "4", "--group-size", "32", "--exclude", r"up\.weight"];
    let text = refused(&[&quantize[..], &["--format", "awq"]].concat());
    let says = "keeping model.layers.0.mlp.up would leave out model.layers.0.mlp.up_proj, too";
    assert!(text.contains(says), "{text}");
    ok(&[&quantize[..], &["--format", "gptq"]].concat());
}

#[test]
fn overrides_and_kept_siblings_are_told_to_loaders_and_to_the_user() {
    let folder = Folder::new();
    directory(&folder.path("model"), &llama(Float::F16), &llama_config());
    let [model, out] = ["model", "out"].map(|n| folder.text(n));
    let quantize =
        ["quantize", "-m", &model, "-o", &out, "-b", "4", "--group-size", "32", "--format", "gptq"];
    let changes =
        ["--override", "layers.1.mlp.(gate|down)=bits=8,group-size=64", "--exclude", "layers.0.*k_proj"];
    let report = ok(&[&quantize[..], &changes].concat());
    let notes = report["notes"].to_string();
    for says in [
        "transformers reads no `dynamic`",
        "vLLM runs model.layers.1.mlp.gate_proj and model.layers.1.mlp.up_proj as one layer and refuses their different schemes",
        "vLLM runs model.layers.0.self_attn.q_proj and model.layers.0.self_attn.k_proj as one layer and refuses that only",
    ] {
        assert!(notes.contains(says), "{notes}");
    }
    let dynamic = &config(&folder, "out")["quantization_config"]["dynamic"];
    let expected = json!({
        r"-:^model\.layers\.0\.self_attn\.(k_proj|qkv_proj)$": {},
        r"+:^model\.layers\.1\.mlp\.down_proj$": {"bits": 8, "group_size": 64},
        r"+:^model\.layers\.1\.mlp\.(gate_proj|gate_up_proj)$": {"bits": 8, "group_size": 64},
    });
    assert_eq!(*dynamic, expected);
    assert!(run(&["validate", &out]).status.success());
}

/// Not even `--force` may take away what is read, wherever it lies.
#[test]
fn nothing_of_the_input_is_replaced() {
    let folder = Folder::new();
    sharded(&folder.path("all/model"), &llama(Float::F16), &llama_config());
    let [all, model] = ["all", "all/model"].map(|n| folder.text(n));
    let shard = folder.text("all/model/model-00002-of-00002.safetensors");
    let quantize = ["quantize", "-f", "-b", "4", "--group-size", "32"];
    for (input, output) in
        [(&model, &all), (&model, &model), (&model, &shard), (&shard, &model), (&shard, &shard)]
    {
        let text = refused(&[&quantize[..], &["-m", input, "-o", output]].concat());
        assert!(text.contains("the output would replace the input"), "{input} to {output}: {text}");
    }
    // the layout that several formats leave
    let both = folder.text("both");
    ok(&[&quantize[..], &["-m", &model, "-o", &both, "--format", "gptq,compressed-tensors"]].concat());
    let gptq = folder.text("both/gptq");
    for arguments in [
        &["convert", "--format", "awq", "-m", &gptq, "-o", &both, "-f"][..],
        &["dequantize", "-m", &gptq, "-o", &both, "-f"],
    ] {
        let text = refused(arguments);
        assert!(text.contains("the output would replace the input"), "{text}");
    }
    assert!(run(&["validate", &gptq]).status.success());
    // beside the input, or in it, is a place like any other
    ok(&[&quantize[..], &["-m", &model, "-o", &folder.text("all/model/inside")]].concat());
    ok(&[&quantize[..], &["-m", &model, "-o", &both]].concat());
}

#[test]
fn a_single_file_in_several_formats_becomes_a_folder() {
    let folder = Folder::new();
    save(&folder.path("one.safetensors"), &llama(Float::F16));
    let input = folder.text("one.safetensors");
    ok(&["quantize", "-m", &input, "-b", "4", "--group-size", "32", "--format", "gptq,awq"]);
    assert_eq!(names(&folder.path("one-w4a16")), ["awq", "gptq"]);
    assert_eq!(names(&folder.path("one-w4a16/awq")), ["model.safetensors"]);
}

#[test]
fn weights_that_count_as_zero_are_warned_of() {
    let folder = Folder::new();
    let mut tensors = llama(Float::F32);
    for value in tensors.get_mut("model.layers.0.mlp.up_proj.weight").unwrap().2.chunks_exact_mut(4) {
        value.copy_from_slice(&1e-40f32.to_le_bytes());
    }
    directory(&folder.path("model"), &tensors, &llama_config());
    let [model, out] = ["model", "out"].map(|n| folder.text(n));
    let report = ok(&["quantize", "-m", &model, "-o", &out, "-b", "4", "--group-size", "32"]);
    let says =
        "model.layers.0.mlp.up_proj.weight: all its weights are zero, or below the smallest normal f32";
    assert!(report["warnings"].to_string().contains(says), "{}", report["warnings"]);
}
