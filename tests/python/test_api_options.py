"""Arguments of `quantize`: which layers, how, and what is refused before any work."""

import re

import pytest
import torch
from mono_quant import (
    ConfigurationError, HistogramObserver, InputError, PercentileObserver, QuantizationConfig, QuantizationError,
    ValidationError, calibrate, check_accuracy_warnings, dynamic_quantize, quantize, static_quantize,
)  # fmt: skip
from test_api import LAYERS, Deep, Plain, Sharing, quantized_names
from torch import nn


def names(**options):
    """Which layers a default model gets quantized, and why the others do not."""
    result = quantize(Deep(), **{"dynamic": options.get("bits", 8) == 8} | options)
    info = result.info
    assert quantized_names(result.model) == [n for n in info.selected_layers if n in LAYERS]
    assert set(info.selected_layers) | set(info.skipped_layers) == {*LAYERS, "norm"}
    assert {f"{n}.weight" for n in info.skipped_layers} <= set(info.skip_reasons)
    return info.selected_layers, info.skip_reasons, info.warnings


# Which layers

REST = ["heads.a", "heads.b.0", "out"]
SKIPS = {
    "name": (["first"], LAYERS[1:], "'first'"),
    "part of a name": ("body", ["first", *REST], "'body'"),
    "glob": (["body.*", "out"], ["first", "heads.a", "heads.b.0"], "'body.*'"),
    "question mark": (["heads.?"], ["first", "body.0.0", "body.1", "heads.b.0", "out"], "'heads.?'"),
    "set of letters": (["heads.[!b]*"], ["first", "body.0.0", "body.1", "heads.b.0", "out"], "'heads.[!b]*'"),
    "regular expression": ([re.compile(r"^(first|out)\.")], LAYERS[1:-1], r"'^(first|out)\.'"),
    "flags": ([re.compile("HEADS", re.I)], ["first", "body.0.0", "body.1", "out"], "'HEADS'"),
}


@pytest.mark.parametrize("argument", ["skip", "modules_to_not_convert", "skip_layer_names", "skip_names"])
@pytest.mark.parametrize("skip, left, word", SKIPS.values(), ids=SKIPS.keys())
def test_skipping_by_name(argument, skip, left, word):
    selected, reasons, _ = names(**{argument: skip})
    assert selected == left
    skipped = [reason for reason in reasons.values() if "skipped" in reason]
    assert f"skipped by name: {word}" in skipped and not any("--" in reason for reason in skipped)


def test_a_name_is_not_a_pattern_and_no_prefix():
    assert names(skip=["body.1"])[0] == ["first", "body.0.0", *REST]
    assert names(skip=["bod", "irst", "b.1"])[0] == LAYERS
    assert names(layer_names=["heads.b"])[0] == ["heads.b.0"]
    assert names(layer_names=["heads", "out"], skip=["heads.a"], bits=4)[0] == ["heads.b.0", "out"]


def test_names_that_match_nothing_are_warned_of():
    for option in ({"skip": ["typo", "first"]}, {"overrides": {"typo": {"bits": 4}}}, {"layer_names": ["typo", "out"]}):
        assert any("'typo' matches no layer" in w for w in names(**option)[2])
    assert any("no Conv2d" in w for w in names(skip_types=[nn.Conv2d])[2])
    assert not any("matches" in w for w in quantize(Sharing(), dynamic=True, skip=["c"]).info.warnings)


def test_skipping_by_type():
    model = nn.Sequential(nn.Embedding(10, 32), nn.Linear(32, 32), nn.Sequential(Plain(32, 32)), nn.Linear(32, 32))
    cases = {
        "classes": ([Plain], ["1", "3"]), "words": (["Plain"], ["1", "3"]), "containers": ([nn.Sequential], None),
        "others": ([nn.Embedding], ["1", "2.0", "3"]), "kind": (["linear"], None), "standard": ([nn.Linear], None),
    }  # fmt: skip
    for argument in ("skip_types", "skip_layer_types"):
        for types, left in cases.values():
            if left is None:
                with pytest.raises(QuantizationError, match="no layer is left"):
                    quantize(model, dynamic=True, **{argument: types})
                continue
            result = quantize(model, dynamic=True, **{argument: types})
            assert quantized_names(result.model) == left
    result = quantize(model, dynamic=True, skip_types=[Plain])
    assert result.info.skip_reasons["2.0.weight"] == "Plain is skipped"
    # at 16 bits a skipped module keeps all its tensors
    result = quantize(model, bits=16, skip_types=[Plain])
    assert {p.dtype for p in result.model[2].parameters()} == {torch.float32}
    assert any("stay torch.float32" in w for w in result.info.warnings)


def test_layer_types():
    model = nn.Sequential(nn.Embedding(10, 32), nn.Conv1d(3, 32, 3), Plain(32, 32), nn.LSTM(32, 8), nn.Linear(8, 8))
    assert quantized_names(quantize(model, dynamic=True).model) == ["1", "2", "3", "4"]
    cases = [([nn.Linear], ["2", "4"]), (nn.Linear, ["2", "4"]), (["linear", "embedding"], ["0", "2", "4"]),
             ([nn.Conv1d, nn.LSTM], ["1", "3"]), ([Plain], ["2"]), ([Plain, "lstm"], ["2", "3"])]  # fmt: skip
    for types, expected in cases:
        result = quantize(model, dynamic=True, layer_types=types)
        assert quantized_names(result.model) == expected == result.info.selected_layers
    assert quantize(model, dynamic=True, layer_types=[Plain]).info.skip_reasons["4.weight"] == "Linear is not among layer_types"
    with pytest.raises(QuantizationError, match="no layer is left"):
        quantize(model, dynamic=True, layer_types=[nn.Conv2d])


def test_small_layers():
    selected, reasons, _ = names(skip_param_threshold=2048)
    assert selected == LAYERS[:-1]
    assert reasons["out.weight"] == "fewer than skip_param_threshold=2048 weights (512)"


def test_int4_leaves_embeddings_norms_and_the_last_projection():
    model = nn.Sequential(nn.Embedding(10, 32), nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 10))
    result = quantize(model, bits=4)
    assert quantized_names(result.model) == ["2"]
    assert "last projection" in result.info.skip_reasons["3.weight"]
    named = quantize(model, bits=4, layer_names=["0", "3"], layer_types=[nn.Linear, nn.Embedding])
    assert quantized_names(named.model) == ["0", "3"]
    coarse = [warning.split(" usually")[0] for warning in named.info.warnings if "4 bits on" in warning]
    assert coarse == ["0.weight: 4 bits on an embedding", "3.weight: 4 bits on the last projection"]


def test_int4_quantizes_all_but_the_last_projection_when_that_is_skipped():
    assert quantized_names(quantize(Deep(), bits=4, skip=["out"]).model) == LAYERS[:-1]


def test_state_dicts_and_files_are_filtered_too(tmp_path):
    state = nn.Sequential(nn.Linear(32, 32), nn.Conv2d(3, 8, 3), nn.Linear(32, 8)).state_dict()
    torch.save(state, tmp_path / "m.pt")
    for model in (state, tmp_path / "m.pt"):
        assert quantize(model, dynamic=True).info.selected_layers == ["0", "2"]
        assert quantize(model, dynamic=True, skip=["0"]).info.selected_layers == ["2"]
        both = {"layer_types": [nn.Linear, nn.Conv2d]}
        assert quantize(model, dynamic=True, **both).info.selected_layers == ["0", "1", "2"]
        assert quantize(model, dynamic=True, **both, skip_types=[nn.Linear]).info.selected_layers == ["1"]
        for wrong in ({"skip_types": [Plain]}, {"skip_types": [nn.Linear]}, {"sample_input": torch.ones(1)},
                      {"calibration_data": [torch.ones(1)]}):  # fmt: skip
            with pytest.raises(ConfigurationError) as caught:
                quantize(model, dynamic=True, **wrong)
            assert caught.value.suggestion


# How


def test_group_sizes_shrink_to_what_divides_and_say_so():
    model = nn.Sequential(nn.Linear(192, 96), nn.Linear(96, 20), nn.Linear(20, 8), nn.Linear(8, 8))
    result = quantize(model, bits=4)
    scales = [result.model[i].state_dict()["weight_scale"].shape[1] for i in range(3)]
    assert scales == [3, 3, 1]  # groups of 64, 32, and a row of 20, which 4 divides: too few weights
    assert "shrunk from 128 to 64: rows have 192" in result.info.changes["0.weight"]
    assert "one scale a row" in result.info.changes["2.weight"] and result.info.group_size == 128
    exact = quantize(model, bits=4, group_size=32)
    assert set(exact.info.changes) == {"2.weight"} and exact.info.group_size == 32
    assert exact.model[0].state_dict()["weight_scale"].shape == (96, 6)
    assert quantize(model, dynamic=True, group_size=32).model[0].state_dict()["weight_scale"].shape == (96, 6)


def test_schemes_and_granularity():
    model = Deep()
    with torch.no_grad():
        model.first.weight += 1  # far from centred on zero
    symmetric, asymmetric = quantize(model, dynamic=True), quantize(model, dynamic=True, scheme="asymmetric")
    assert asymmetric.info.layer_sqnr_db["first.weight"] > symmetric.info.layer_sqnr_db["first.weight"] + 3
    assert asymmetric.info.scheme == "asymmetric" and not asymmetric.info.symmetric
    zero = asymmetric.model.first.state_dict()["weight_zero_point"]
    assert zero.dtype == torch.int8 and (zero < -64).all()  # zero is in the range, so that x̂(0) = 0
    whole = quantize(model, dynamic=True, per_channel=False)
    scale = whole.model.out.state_dict()["weight_scale"]
    assert scale.shape == (1,)
    assert (whole.model.out.weight - model.out.weight).abs().max() <= scale.item() * 0.5001
    assert quantize(model, dynamic=True, symmetric=False).info.scheme == "asymmetric"
    assert quantize(model, dynamic=True, dtype="int4").info.bits == 4
    mse, minmax = (quantize(model, bits=4, weight_observer=name).info.sqnr_db for name in ("mse", "minmax"))
    assert mse > minmax and quantize(model, bits=4).info.sqnr_db == mse


def test_overrides():
    model = Deep()
    result = quantize(model, dynamic=True, overrides={
        "first": {"bits": 4, "group_size": 16}, "heads.*": {"scheme": "asymmetric"}, re.compile("out"): {"bits": 16},
    })  # fmt: skip
    first, head = result.model.first.schemes["weight"], result.model.heads["a"].schemes["weight"]
    assert (first.bits, first.group_size, head.bits, head.symmetric) == (4, 16, 8, False)
    assert type(result.model.out) is nn.Linear
    assert result.info.skip_reasons["out.weight"] == "override says 16 bits"
    assert result.model.first.inputs is None and result.model.body[1].inputs == "dynamic"
    shared = quantize(Sharing(), dynamic=True, overrides={"c": {"bits": 4}})
    assert shared.model.a.schemes["weight"].bits == 4  # a weight has one scheme under all its names


def test_static_inputs_by_every_observer_and_from_statistics(tmp_path):
    model, data = Deep(), [torch.randn(500, 32) ** 3 for _ in range(4)]  # long tails, which observers clip or not
    more = {"calibration_data": data, "num_calibration_samples": 2000}
    observers = ["minmax", "moving_average", "histogram", "percentile", HistogramObserver, PercentileObserver(90.0)]
    scales = [quantize(model, **more, observer=o).model.first.input_scale.item() for o in observers]
    assert len(set(scales)) == 5 and scales[2] == scales[4] and scales[5] < min(scales[:5])
    found = calibrate(model, data, observer="minmax", num_calibration_samples=2000)
    found.save(tmp_path / "statistics.json")
    for calibration in (found, tmp_path / "statistics.json", str(tmp_path / "statistics.json")):
        result = quantize(model, calibration=calibration)
        assert result.model.first.input_scale.item() == scales[0]
    assert quantize(model.state_dict(), calibration=found).model["first.input_scale"].item() == scales[0]
    asymmetric = quantize(model, calibration_data=data, activation_scheme="asymmetric").model
    assert asymmetric.body[1].input_zero_point.item() != 0  # after a ReLU
    lstm = quantize(nn.LSTM(8, 8), calibration_data=[torch.randn(3, 2, 8)])
    assert quantized_names(lstm.model) == [""] and lstm.info.calibration_samples_used == 0


# Checks


def test_validation_before_a_result_is_returned():
    model, x = Deep(), torch.randn(20, 32)
    assert quantize(model, dynamic=True).info.max_error is None
    checked = quantize(model, dynamic=True, run_validation=True).info
    assert checked.max_error > 0 and checked.output_error is None
    assert quantize(model, dynamic=True, sample_input=x).info.output_error > 0
    assert quantize(model, dynamic=True, sample_input=x, run_validation=False).info.output_error is None
    with pytest.raises(InputError, match="does not run on the sample input"):
        quantize(model, dynamic=True, sample_input=torch.randn(3, 7))


def test_failures_are_raised_warned_of_or_ignored():
    class Fragile(Deep):
        def forward(self, x):
            assert type(self.first) is nn.Linear
            return super().forward(x)

    options = {"dynamic": True, "sample_input": torch.randn(20, 32)}
    with pytest.raises(ValidationError, match="does not run") as caught:
        quantize(Fragile(), **options)
    assert caught.value.suggestion
    with pytest.warns(UserWarning, match="does not run"):
        assert quantize(Fragile(), on_failure="warn", **options)
    assert quantize(Fragile(), on_failure="ignore", **options)


def test_accuracy_warnings():
    model = Deep()
    assert not any("SQNR" in w for w in quantize(model, dynamic=True).info.warnings)
    low = {"sqnr_warning_threshold": 60, "sqnr_error_threshold": 55}
    for given in (model, model.state_dict()):
        found = quantize(given, dynamic=True, **low).info.warnings
        assert sum("under 60 dB" in w for w in found) == len(LAYERS) and any("over all layers" in w for w in found)
        with pytest.raises(ValidationError, match="under 55 dB"):
            quantize(given, dynamic=True, accuracy_warning="error", **low)
        assert not any("SQNR" in w for w in quantize(given, dynamic=True, accuracy_warning="ignore", **low).info.warnings)
    result = quantize(model, dynamic=True, accuracy_warning="error")
    assert len(check_accuracy_warnings(result, sqnr_warning_threshold=60)) == len(LAYERS)


def test_not_finite_weights_are_refused_by_name():
    for value in (float("nan"), float("inf")):
        model = Deep()
        model.body[1].weight.data[3, 4] = value
        for given in (model, model.state_dict()):
            for bits in (8, 4, 16):
                with pytest.raises(QuantizationError, match=r"body\.1\.weight: 1 value is not finite.* index 196") as caught:
                    quantize(given, bits=bits, dynamic=True)
                assert caught.value.suggestion == "on_nonfinite='keep' leaves the tensor as it is"
            kept = quantize(given, dynamic=True, on_nonfinite="keep").info
            assert kept.skipped_layers == ["body.1", "norm"]
            assert "body.1.weight holds NaN or infinity" in kept.warnings
    model = Deep()
    model.out.bias.data[0] = float("nan")
    assert "out.bias holds NaN or infinity" in quantize(model, dynamic=True).info.warnings


def test_progress_is_shown_on_stderr_and_only_if_asked(capsys):
    quantize(Deep(), dynamic=True)
    assert capsys.readouterr() == ("", "")
    quantize(Deep(), calibration_data=[torch.randn(20, 32)], show_progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "calibrate" in err and "quantize" in err and "100%" in err and err.endswith("\n")


WRONG = [
    {"bits": 5}, {"bits": True}, {"bits": 8.0}, {"bits": "8"}, {"bits": None}, {"dynamic": 1}, {"dynamic": None},
    {"scheme": "affine"}, {"scheme": None}, {"scheme": []}, {"dtype": torch.int32}, {"group_size": 0},
    {"group_size": 32.0}, {"group_size": True}, {"group_size": 2**40}, {"per_channel": 1},
    {"per_channel": False, "bits": 4}, {"per_channel": False, "group_size": 32}, {"observer": "best"},
    {"weight_observer": "best"}, {"activation_scheme": "affine"}, {"layer_types": []}, {"layer_types": 3},
    {"layer_types": [nn.Conv3d]}, {"layer_types": ["conv9"]}, {"skip": [3]}, {"skip": 3}, {"skip": [""]},
    {"skip": [re.compile("a(?=b)")]}, {"skip_types": [3]}, {"skip_param_threshold": -1}, {"skip_param_threshold": 1.5},
    {"overrides": [1]}, {"overrides": {"first": {}}}, {"overrides": {"first": 4}}, {"overrides": {"first": {"bits": 5}}},
    {"overrides": {"first": {"size": 5}}}, {"overrides": {"first": {"group_size": 0}}}, {"on_nonfinite": "drop"},
    {"saturate": 1}, {"device": 3}, {"device": "no such adapter"}, {"device": "gpu:99"},
    {"device": "cpu,cpu"}, {"output": "x.pt"}, {"force": 1},
    {"on_failure": "raise"}, {"run_validation": "yes"}, {"accuracy_warning": True}, {"sqnr_error_threshold": "20"},
    {"num_calibration_samples": 0}, {"num_calibration_samples": 1.5}, {"calibration": 3}, {"show_progress": 1},
    {"bits": 16, "group_size": 32}, {"bits": 16, "scheme": "asymmetric"}, {"bits": 16, "overrides": {"a": {"bits": 8}}},
    {"bits": 16, "layer_types": [nn.Linear]}, {"bits": 16, "weight_observer": "mse"}, {"typo": 1}, {"typo": None},
]  # fmt: skip


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_wrong_arguments_are_refused_before_work_with_a_suggestion(options):
    model = Deep()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    for more in ({"dynamic": True}, {"calibration_data": [torch.randn(4, 32)]}):
        with pytest.raises(ConfigurationError) as caught:
            quantize(model, **more | options)
        assert caught.value.suggestion and "--" not in str(caught.value), caught.value
        assert isinstance(caught.value, ValueError)


def test_contradictions_are_refused():
    model, data = Deep(), [torch.randn(4, 32)]
    cases = [lambda: quantize(model), lambda: quantize(model.state_dict()), lambda: static_quantize(model, None),
             lambda: quantize(model, dynamic=True, calibration=calibrate(model, data)),
             lambda: dynamic_quantize(model, config={"bits": 8}),
             lambda: dynamic_quantize(model, config=QuantizationConfig(bits=8), bits=4),
             lambda: QuantizationConfig.from_kwargs(bit=8)]  # fmt: skip
    for case in cases:
        with pytest.raises(ConfigurationError) as caught:
            case()
        assert caught.value.suggestion
    with pytest.raises(ConfigurationError, match="no calibration_data") as caught:
        quantize(model)
    assert "dynamic=True" in caught.value.suggestion
    with pytest.raises(InputError, match="empty"):
        quantize(model, calibration_data=[])


def test_nothing_to_quantize_is_an_error():
    for model in (nn.LayerNorm(8), nn.Embedding(4, 4)):
        with pytest.raises(QuantizationError, match="no layer is left") as caught:
            quantize(model, dynamic=True)
        assert "layer_types" in caught.value.suggestion
