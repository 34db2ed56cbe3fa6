"""Observers: equal to torch.ao.quantization's on the same data, bit for bit."""

import copy
import itertools
import pickle

import pytest
import torch
from mono_quant.exceptions import ConfigurationError, InputError, QuantizationError
from mono_quant.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    Observer,
    PercentileObserver,
    maker,
)
from observer_cases import CASES
from torch.ao.quantization import observer as ao

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated, and warns of missing data and bad ranges

EVERY = [MinMaxObserver, MovingAverageMinMaxObserver, HistogramObserver, PercentileObserver]
# Symmetric unsigned codes with a reduced range are refused by both.
CODES = [c for c in itertools.product([True, False], repeat=3) if c != (True, False, True)]
KINDS = {
    "minmax": (MinMaxObserver, ao.MinMaxObserver, ao.PerChannelMinMaxObserver, {}),
    "moving average": (
        MovingAverageMinMaxObserver,
        ao.MovingAverageMinMaxObserver,
        ao.MovingAveragePerChannelMinMaxObserver,
        {"averaging_constant": 0.1},
    ),
    "histogram": (HistogramObserver, ao.HistogramObserver, None, {}),
    "histogram of 100": (HistogramObserver, ao.HistogramObserver, None, {"bins": 100}),
}


def theirs(per_tensor, per_channel, axis, symmetric=False, signed=True, reduce_range=False, **settings):
    per = "tensor" if axis is None else "channel"
    settings["qscheme"] = getattr(torch, f"per_{per}_{'symmetric' if symmetric else 'affine'}")
    settings |= {"dtype": torch.qint8 if signed else torch.quint8, "reduce_range": reduce_range}
    return per_tensor(**settings) if axis is None else per_channel(ch_axis=axis, **settings)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True, check_dtype=False)


@pytest.mark.parametrize(
    "kind, case",
    [
        pytest.param(kind, case, id=f"{name}-{case}")
        for name, kind in KINDS.items()
        for case in CASES
        if case.axis is None or kind[2] is not None
    ],
)
def test_equal_to_torch(kind, case):
    own, per_tensor, per_channel, settings = kind
    observer, reference = own(**settings, axis=case.axis), theirs(per_tensor, per_channel, case.axis, **settings)
    for batch in case.batches():
        assert observer(batch) is batch
        reference(batch)
    same(observer.min_val, reference.min_val)
    same(observer.max_val, reference.max_val)
    if not observer.facts["values"]:
        assert observer.range() is None
        return
    histogram = isinstance(reference, ao.HistogramObserver)
    low, high = reference._non_linear_param_search() if histogram else (reference.min_val, reference.max_val)
    for found, expected in zip(observer.range(), (low, high)):
        same(found, expected.reshape(-1))
    for symmetric, signed, reduce_range in CODES:
        other = theirs(per_tensor, per_channel, case.axis, symmetric, signed, reduce_range, **settings)
        if not torch.isfinite(high - low).all():
            with pytest.raises(QuantizationError, match="no finite scale"):
                observer.calculate_qparams(8, symmetric, signed, reduce_range)
            continue
        scale, zero_point = observer.calculate_qparams(8, symmetric, signed, reduce_range)
        expected = other._calculate_qparams(low, high)
        assert scale.dtype == torch.float32 and zero_point.dtype == torch.int32
        same(scale, expected[0].reshape(-1))
        same(zero_point, expected[1].reshape(-1))


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_fewer_bits_are_torchs_custom_range(bits):
    x = torch.randn(3000)
    for symmetric, signed in itertools.product([True, False], repeat=2):
        low = -(2 ** (bits - 1)) if signed else 0
        scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
        dtype = torch.qint8 if signed else torch.quint8
        reference = ao.MinMaxObserver(dtype, scheme, quant_min=low, quant_max=low + 2**bits - 1)
        reference(x)
        observer = MinMaxObserver()
        observer(x)
        for found, expected in zip(observer.calculate_qparams(bits, symmetric, signed), reference.calculate_qparams()):
            same(found, expected)


@pytest.mark.parametrize("cls", EVERY)
def test_any_floats_in_any_layout(cls):
    x = torch.randn(6, 7, 8)
    for values in (x.half(), x.bfloat16(), x.double(), x.transpose(0, 2), x[::2, 1:, ::3], x.requires_grad_()):
        found, expected = cls(), cls()
        assert found.observe(values) is values
        expected.forward(values.detach().float().clone(memory_format=torch.contiguous_format))
        assert found.state() == expected.state()


def test_percentile_keeps_the_central_part():
    x = torch.arange(-1000, 1001).bfloat16().float()
    x = x[x.abs() <= 128]
    observer = PercentileObserver(90.0)
    observer(x)
    low, high = observer.range()
    kept = ((x >= low) & (x <= high)).float().mean().item()
    assert kept == pytest.approx(0.9, abs=0.01)
    symmetric = observer.calculate_qparams(symmetric=True)[0].item() * 127.5
    assert (x.abs() <= symmetric).float().mean().item() == pytest.approx(0.9, abs=0.01)
    assert (observer.min_val, observer.max_val) == (-128, 128)


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("cls", EVERY)
def test_state_goes_on(cls, axis):
    if axis is not None and cls in EVERY[2:]:
        with pytest.raises(ConfigurationError, match="one range for a whole input"):
            cls(axis=axis)
        return
    observer = cls(axis=axis)
    assert "no data" in repr(observer)
    observer(torch.randn(50, 4))
    others = [Observer.from_state(observer.state()), copy.deepcopy(observer), pickle.loads(pickle.dumps(observer))]
    more = torch.randn(70, 4) * 2
    observer(more)
    for other in others:
        other(more)
        assert type(other) is cls and other.state() == observer.state() and repr(other) == repr(observer)
        assert other.fresh().state() == cls(axis=axis).state()


def test_what_is_refused():
    for make in (
        lambda: HistogramObserver(7),
        lambda: HistogramObserver(2.5),
        lambda: PercentileObserver(50),
        lambda: PercentileObserver("99"),
        lambda: MovingAverageMinMaxObserver(0),
        lambda: MinMaxObserver(axis=-1),
        lambda: MinMaxObserver(axis=0, ch_axis=1),
        lambda: Observer.from_state({"kind": "min_max"}),
        lambda: maker("mean"),
        lambda: maker(MinMaxObserver(axis=0)),
    ):
        with pytest.raises(ConfigurationError) as refused:
            make()
        assert isinstance(refused.value, ValueError)
    assert MinMaxObserver(ch_axis=1).axis == 1

    observer = MinMaxObserver(axis=1)
    with pytest.raises(QuantizationError, match="no values were observed"):
        observer.calculate_qparams()
    observer(torch.ones(2, 3))
    before = observer.state()
    for bad, match in (
        (torch.tensor([[1.0, 2.0, float("nan")]]), "1 of 3 values are NaN"),
        (torch.ones(2, 4), "4 channels; earlier inputs had 3"),
        (torch.ones(3), "no axis 1"),
        (torch.ones(2, 3, dtype=torch.int64), "torch.int64 cannot be observed"),
        (torch.ones(2, 3).to_sparse(), "make it dense"),
        (torch.ones(2, 3, device="meta"), "meta"),
        ([[1.0]], "list cannot be observed"),
    ):
        with pytest.raises(InputError, match=match):
            observer(bad)
        assert observer.state() == before
    with pytest.raises(QuantizationError, match="2 to 8 bits"):
        observer.calculate_qparams(bits=16)
