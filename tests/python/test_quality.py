"""How much is lost, in dB, and that the report says the truth about it."""

import math

import numpy as np
import pytest
import torch
from helpers import TINY_LLAMA, codes, compare, decoded, dequantize, quantize, sqnr_db, tensors
from safetensors.torch import save_file

INT4 = ["--bits", 4, "--group-size", 128]
ASYMMETRIC = ["--scheme", "asymmetric"]
MINMAX, MSE = ["--observer", "minmax"], ["--observer", "mse"]


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    weight = (0.02 * torch.randn(1024, 1024, generator=torch.Generator().manual_seed(1))).bfloat16()
    path = tmp_path_factory.mktemp("gaussian") / "in.safetensors"
    save_file({"w.weight": weight}, path)
    return path


@pytest.fixture(scope="module")
def outliers(tmp_path_factory):
    """Gaussian rows of different sizes, in which one weight in 5000 was multiplied by 50."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(32, 8192, generator=generator) * torch.linspace(0.5, 2, 32)[:, None]
    weight[torch.rand(weight.shape, generator=generator) < 1 / 5000] *= 50
    path = tmp_path_factory.mktemp("outliers") / "in.safetensors"
    save_file({"w.weight": (0.02 * weight).bfloat16()}, path)
    return path


@pytest.mark.parametrize(
    "options, expected",
    [
        (MINMAX, 19.1),
        ([*MSE, "--scale-sign", "positive"], 19.9),
        (MSE, 20.3),
        ([], 20.3),
        ([*ASYMMETRIC, *MINMAX], 20.0),
        ([*ASYMMETRIC, *MSE], 20.5),
    ],
    ids=["minmax", "mse, s > 0", "mse", "usual", "asymmetric minmax", "asymmetric mse"],
)
def test_int4_gaussian_weights_have_the_sqnr_of_the_design_table(options, expected, gaussian, tmp_path):
    out = tmp_path / "q.safetensors"
    report = quantize(gaussian, out, *INT4, *options)
    weight = tensors(gaussian)["w.weight"].double().numpy()
    measured = sqnr_db(weight, decoded(tensors(out), "w.weight", 4))
    assert measured == pytest.approx(expected, abs=0.15)
    assert report["sqnr_db"] == pytest.approx(measured, abs=0.01)
    assert compare(gaussian, out)["sqnr_db"] == pytest.approx(measured, abs=0.01)


@pytest.mark.parametrize(
    "bits, options",
    [
        (4, ["--bits", 4, *MSE]),
        (4, ["--bits", 4, *ASYMMETRIC]),
        (8, ["--bits", 8]),
        (8, ["--bits", 8, *ASYMMETRIC]),
        (8, ["--bits", 8, "--strategy", "tensor"]),
        (8, ["--preset", "w8a16", "--group-size", 32, *MSE]),
    ],
    ids=str,
)
def test_the_reported_sqnr_is_that_of_the_files(bits, options, tmp_path):
    report = quantize(TINY_LLAMA, tmp_path / "q", *options)
    original, stored = tensors(TINY_LLAMA), tensors(tmp_path / "q")
    compared = {d["name"]: d for d in compare(TINY_LLAMA, tmp_path / "q")["differences"]}
    layers = [entry for entry in report["tensors"] if "sqnr_db" in entry]
    assert len(layers) == 21
    signal = noise = 0.0
    for entry in layers:
        weight = original[entry["name"]].double().numpy()
        back = decoded(stored, entry["name"], bits)
        assert entry["sqnr_db"] == pytest.approx(sqnr_db(weight, back), abs=0.01)
        assert compared[entry["name"]]["sqnr_db"] == pytest.approx(sqnr_db(weight, back), abs=0.01)
        assert compared[entry["name"]]["max_error"] == pytest.approx(np.abs(weight - back).max(), rel=1e-6)
        peak = np.abs(weight).max() / math.sqrt(np.square(weight).mean())
        assert entry["peak_to_rms"] == pytest.approx(peak, rel=1e-4)
        signal += np.square(weight).sum()
        noise += np.square(weight - back).sum()
    assert report["sqnr_db"] == pytest.approx(10 * math.log10(signal / noise), abs=0.01)


@pytest.mark.parametrize(
    "options",
    [
        ["--bits", 4],
        ["--bits", 4, "--group-size", 32],
        ["--bits", 4, *ASYMMETRIC],
        ["--bits", 8],
        ["--bits", 8, *ASYMMETRIC],
        ["--bits", 8, "--strategy", "tensor"],
    ],
    ids=str,
)
def test_mse_is_never_worse_than_minmax(options, tmp_path):
    by_observer = {}
    for observer in ("minmax", "mse"):
        report = quantize(TINY_LLAMA, tmp_path / observer, *options, "--observer", observer)
        by_observer[observer] = {e["name"]: e["sqnr_db"] for e in report["tensors"] if "sqnr_db" in e}
    assert len(by_observer["mse"]) == 21
    for name, db in by_observer["mse"].items():
        assert db >= by_observer["minmax"][name], name


def ranges(stored, bits):
    """Smallest and largest weight that each scale can express; symmetric ranges reach half a step further."""
    _, zero, scale = (t.double() for t in codes(stored, "w.weight", bits))
    symmetric = "w.weight_zero_point" not in stored
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return (low - zero + symmetric / 2) * scale, (high - zero + symmetric / 2) * scale


@pytest.mark.parametrize("percent", [99, 99.9])
@pytest.mark.parametrize("strategy", ["channel", "tensor"])
def test_percentile_clips_half_of_the_rest_on_each_side(percent, strategy, outliers, tmp_path):
    out = tmp_path / "q.safetensors"
    options = ["--bits", 8, "--strategy", strategy, *ASYMMETRIC]
    quantize(outliers, out, *options, "--observer", "percentile", "--percentile", percent)
    weight = tensors(outliers)["w.weight"].double()
    rows = weight if strategy == "channel" else weight.view(1, -1)
    low, high = (bound[:, 0] for bound in ranges(tensors(out), 8))
    # a bound is an edge of one of 2048 bins; rounding the zero point moves it by half a step of the codes, rounding
    # the scale to bf16 by one
    width, rounding = (rows.amax(1) - rows.amin(1)) / 2048, 1.5 * (high - low) / 255
    tail = rows.shape[1] * (100 - percent) / 200

    def outside(low, high):
        return (rows < low[:, None]).sum(1), (rows > high[:, None]).sum(1)

    assert all((clipped <= tail).all() for clipped in outside(low - rounding, high + rounding))
    inner = outside(low + width + rounding, high - width - rounding)
    assert all((clipped > tail).all() for clipped in inner)


@pytest.mark.parametrize("observer", ["percentile", "histogram"])
def test_an_edge_of_a_bin_may_lie_at_zero(observer, tmp_path):
    weight = torch.linspace(-1, 1, 4096).bfloat16()[None]
    save_file({"w.weight": weight}, tmp_path / "in.safetensors")
    quantize(tmp_path / "in.safetensors", tmp_path / "q.safetensors", "--bits", 8, "--observer", observer)
    high = ranges(tensors(tmp_path / "q.safetensors"), 8)[1].item()
    assert high == pytest.approx(1, abs=0.01)


def test_percentile_100_is_minmax(outliers, tmp_path):
    minmax, percentile = tmp_path / "minmax.safetensors", tmp_path / "percentile.safetensors"
    quantize(outliers, minmax, "--bits", 8)
    quantize(outliers, percentile, "--bits", 8, "--observer", "percentile", "--percentile", 100)
    expected, stored = tensors(minmax), tensors(percentile)
    assert expected.keys() == stored.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)


@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("observer", ["percentile", "histogram"])
def test_clipped_ranges_lie_between_the_bulk_and_the_extremes(observer, symmetry, outliers, tmp_path):
    out = tmp_path / "q.safetensors"
    quantize(outliers, out, "--bits", 8, "--scheme", symmetry, "--observer", observer)
    weight = tensors(outliers)["w.weight"].double()
    low, high = (bound[:, 0] for bound in ranges(tensors(out), 8))
    step = (high - low) / 255
    largest = weight.abs().amax(1)
    assert (high <= largest + step).all() and (low >= -largest - step).all()
    assert (high + step >= weight.quantile(0.995, dim=1)).all()
    assert (low - step <= weight.quantile(0.005, dim=1)).all()


@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("observer", ["percentile", "histogram", "mse"])
def test_clipping_helps_ordinary_weights_where_there_are_outliers(observer, symmetry, outliers, tmp_path):
    options = ["--bits", 8, "--strategy", "tensor", "--scheme", symmetry]
    weight = tensors(outliers)["w.weight"].double().numpy()
    ordinary = np.abs(weight) < 8 * 0.02
    noise, total = {}, {}
    for name in ("minmax", observer):
        total[name] = quantize(outliers, tmp_path / name, *options, "--observer", name)["sqnr_db"]
        error = weight - decoded(tensors(tmp_path / name), "w.weight", 8)
        noise[name] = np.square(error[ordinary]).sum()
    assert noise[observer] < noise["minmax"]
    if observer != "percentile":  # which does not weigh what it clips
        assert total[observer] > total["minmax"]


def test_dequantized_files_lose_no_more_than_their_dtype(gaussian, tmp_path):
    out = tmp_path / "q.safetensors"
    quantize(gaussian, out, *INT4)
    dense = tensors(dequantize(out, tmp_path / "d.safetensors", "--dtype", "f32"))["w.weight"].double().numpy()
    assert np.array_equal(dense, decoded(tensors(out), "w.weight", 4))
