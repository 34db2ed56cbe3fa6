"""Conv2d, LSTM and Linear layers of a trained classifier: names, shapes, and how many digits it still reads."""

import sys

import pytest
import torch
from helpers import DATA, decoded, dequantize, quantize, sqnr_db, tensors

sys.path.insert(0, str(DATA))
from train_digits import Digits, accuracy

DIGITS = DATA / "digits.safetensors"
KINDS = ["--layer-types", "linear,conv2d,lstm"]
LAYERS = {"conv1.weight", "conv2.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "fc.weight"}
# Options, bits, and how many of 200 digits must be read. The original reads 199; measured: 198 to 200.
CASES = {
    "w8a8": (["--bits", 8], 8, 199),
    "w8a8 asymmetric": (["--bits", 8, "--scheme", "asymmetric"], 8, 198),
    "w8a16": (["--preset", "w8a16"], 8, 199),
    "w4a16 channel": (["--bits", 4, "--on-mismatch", "channel"], 4, 197),
    "w4a16 shrunk groups": (["--bits", 4, "--on-mismatch", "shrink"], 4, 198),
    "w4a16 asymmetric": (["--bits", 4, "--on-mismatch", "shrink", "--scheme", "asymmetric"], 4, 198),
    "w4a16 mse": (["--bits", 4, "--on-mismatch", "shrink", "--observer", "mse"], 4, 198),
}
each = pytest.mark.parametrize("options, bits, least", CASES.values(), ids=CASES.keys())


def right(state: dict[str, torch.Tensor]) -> int:
    """How many of the 200 test digits a model with these weights reads."""
    model = Digits()
    model.load_state_dict(state)
    test = tensors(DATA / "digits_test.safetensors")
    return round(200 * accuracy(model, test["images"].float(), test["labels"]))


def test_the_original_reads_199_digits():
    assert right(tensors(DIGITS)) == 199


@each
def test_quantized_digits_are_still_read(options, bits, least, tmp_path):
    report = quantize(DIGITS, tmp_path / "q.safetensors", *KINDS, *options)
    assert {e["name"] for e in report["tensors"] if "scheme" in e} == LAYERS
    restored = tensors(dequantize(tmp_path / "q.safetensors", tmp_path / "d.safetensors"))
    assert right(restored) >= least


@each
def test_only_layers_change_and_their_shapes_come_back(options, bits, least, tmp_path):
    quantize(DIGITS, tmp_path / "q.safetensors", *KINDS, *options)
    original, stored = tensors(DIGITS), tensors(tmp_path / "q.safetensors")
    restored = tensors(dequantize(tmp_path / "q.safetensors", tmp_path / "d.safetensors"))
    assert restored.keys() == original.keys()
    for name, tensor in original.items():
        back = restored[name]
        assert back.dtype == tensor.dtype and back.shape == tensor.shape
        if name not in LAYERS:
            assert torch.equal(stored[name], tensor) and torch.equal(back, tensor)
            continue
        codes = decoded(stored, name, bits)
        assert torch.equal(back.flatten(1), torch.from_numpy(codes).float())
        assert sqnr_db(tensor.flatten(1).double().numpy(), codes) > {4: 15, 8: 38}[bits]


def test_packed_names_follow_the_weights_own(tmp_path):
    quantize(DIGITS, tmp_path / "q.safetensors", *KINDS, "--bits", 4, "--strategy", "channel", "--scheme", "asymmetric")
    stored = tensors(tmp_path / "q.safetensors")
    for name in LAYERS:
        assert name not in stored
        assert {f"{name}{end}" for end in ("_packed", "_scale", "_zero_point", "_shape")} <= stored.keys()
    assert stored["conv2.weight_shape"].tolist() == [32, 16, 3, 3]
    assert stored["conv2.weight_packed"].shape == (32, 16 * 3 * 3 // 8)
    assert stored["lstm.weight_ih_l0_packed"].shape == (192, 128 // 8)
    assert stored["lstm.weight_ih_l0_scale"].shape == (192, 1)
    assert stored["lstm.weight_ih_l0_zero_point"].shape == (192 // 8, 1)


def test_int8_names_and_shapes_are_the_weights_own(tmp_path):
    quantize(DIGITS, tmp_path / "q.safetensors", *KINDS, "--bits", 8)
    original, stored = tensors(DIGITS), tensors(tmp_path / "q.safetensors")
    assert stored.keys() == original.keys() | {f"{name}_scale" for name in LAYERS}
    for name in LAYERS:
        assert stored[name].dtype == torch.int8 and stored[name].shape == original[name].shape


def test_counters_stay_int64(tmp_path):
    quantize(DIGITS, tmp_path / "q.safetensors", *KINDS, "--bits", 4, "--on-mismatch", "shrink")
    quantize(DIGITS, tmp_path / "h.safetensors", "--preset", "fp16")
    for file in ("q", "h"):
        counter = tensors(tmp_path / f"{file}.safetensors")["bn1.num_batches_tracked"]
        assert counter.dtype == torch.int64 and counter.item() == 1000


def test_only_the_kinds_that_were_asked_for_change(tmp_path):
    report = quantize(DIGITS, tmp_path / "q.safetensors", "--layer-types", "lstm", "--bits", 8)
    changed = {e["name"] for e in report["tensors"] if "scheme" in e}
    assert changed == {"lstm.weight_ih_l0", "lstm.weight_hh_l0"}
