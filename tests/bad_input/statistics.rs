//! Statistics of `monoquant calibrate`, for `--calibration`.

use crate::{Case, accepted, failed, inputs::*, refused};
use serde_json::{Value, json};

const CALIBRATED: &str = "quantize -m x.safetensors -o out.safetensors -f --calibration s.json";

fn statistics(value: Value) -> Make {
    all([sound(), file("s.json", value.to_string())])
}

/// What an observer of the weight's inputs saw.
fn layer(change: impl Fn(&mut Value)) -> Make {
    let extremes = json!({"low": [-1.0], "high": [1.0]});
    let mut observer = json!({"kind": "min_max", "axis": null,
        "facts": {"batches": 1, "samples": 1, "values": 4, "infinities": 0, "extremes": [-1.0, 1.0]},
        "state": {"extremes": extremes}});
    change(&mut observer);
    statistics(json!({"monoquant_calibration": 1, "symmetric": true, "layers": {"layer": observer}}))
}

pub fn cases() -> Vec<Case> {
    vec![
        failed(
            "statistics: no file",
            sound(),
            CALIBRATED,
            "s.json: cannot open: No such file or directory (os error 2)",
        ),
        refused(
            "statistics: empty",
            all([sound(), file("s.json", "")]),
            CALIBRATED,
            "s.json: is not the JSON expected here: EOF while parsing a value at line 1 column 0",
        ),
        refused(
            "statistics: garbage",
            all([sound(), file("s.json", "ranges")]),
            CALIBRATED,
            "s.json: is not the JSON expected here: expected value at line 1 column 1",
        ),
        refused(
            "statistics: deep JSON",
            all([sound(), file("s.json", deep("layers"))]),
            CALIBRATED,
            "s.json: is not the JSON expected here: recursion limit exceeded at line 1 column 1271",
        ),
        failed(
            "statistics: a directory",
            all([sound(), directory("s.json")]),
            CALIBRATED,
            "s.json: cannot read: Is a directory (os error 21)",
        ),
        refused(
            "statistics: 100 MB",
            all([sound(), sparse("s.json", 100_000_001, b"")]),
            CALIBRATED,
            "s.json: is larger than 100000000 bytes",
        )
        .addresses(512 << 10),
        refused(
            "statistics: another file",
            statistics(json!({"layers": {}})),
            CALIBRATED,
            "s.json: holds no statistics of monoquant calibrate",
        ),
        refused(
            "statistics: a list",
            statistics(json!([])),
            CALIBRATED,
            "s.json: holds no statistics of monoquant calibrate",
        ),
        refused(
            "statistics: another version",
            statistics(json!({"monoquant_calibration": 2})),
            CALIBRATED,
            "s.json: statistics of version 2; accepted: 1",
        ),
        refused(
            "statistics: no layers",
            statistics(json!({"monoquant_calibration": 1, "symmetric": true})),
            CALIBRATED,
            "s.json: holds damaged statistics: missing field `layers`",
        ),
        refused(
            "statistics: an unknown observer",
            layer(|o| o["kind"] = json!("guess")),
            CALIBRATED,
            "s.json: holds damaged statistics: unknown variant `guess`, expected one of `min_max`, `moving_average_min_max`, `histogram`, `percentile`",
        ),
        refused(
            "statistics: a range the wrong way round",
            layer(|o| o["state"]["extremes"] = json!({"low": [1.0], "high": [-1.0]})),
            CALIBRATED,
            "s.json: holds damaged statistics: these statistics contradict themselves",
        ),
        refused(
            "statistics: a range that is not finite",
            layer(|o| o["state"]["extremes"]["high"] = json!([1e60])),
            CALIBRATED,
            "no layer is left to quantize (layer.weight: layer: the range, -1 to inf, has no finite scale); --include, --layer-types and --min-params choose others",
        ),
        refused(
            "statistics: the state of another observer",
            layer(|o| o["kind"] = json!({"histogram": {"bins": 2048}})),
            CALIBRATED,
            "s.json: holds damaged statistics: these statistics contradict themselves",
        ),
        refused(
            "statistics: bins without end",
            layer(|o| o["kind"] = json!({"histogram": {"bins": 1u64 << 40}})),
            CALIBRATED,
            "s.json: holds damaged statistics: a histogram has 8 to 32768 bins, not 1099511627776",
        ),
        refused(
            "statistics: a range by channel",
            layer(|o| {
                o["axis"] = json!(0);
                o["state"]["extremes"] = json!({"low": [-1.0, -2.0], "high": [1.0, 2.0]});
            }),
            CALIBRATED,
            "no layer is left to quantize (layer.weight: layer: inputs take one scale, and its statistics are by channel); --include, --layer-types and --min-params choose others",
        ),
        refused(
            "statistics: of no layer that there is",
            statistics(json!({"monoquant_calibration": 1, "symmetric": true, "layers": {}})),
            CALIBRATED,
            "no layer is left to quantize (layer.weight: not reached by calibration); --include, --layer-types and --min-params choose others",
        ),
        refused(
            "statistics: for 4 bits",
            layer(|_| {}),
            "quantize -m x.safetensors -o out.safetensors -f --calibration s.json --bits 4 --group-size 64",
            "--calibration is for inputs of 8 bits (--bits 8); those of w4a16 stay in floating point",
        ),
        accepted(
            "statistics: sound",
            layer(|_| {}),
            CALIBRATED,
            "layer.weight: int8 symmetric, channel, minmax, 50 dB",
        ),
    ]
}
