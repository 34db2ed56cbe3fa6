"""The caller's model is only read, and results are whole: they can be copied and pickled."""

import copy
import json
import pickle
from dataclasses import dataclass

import pytest
import torch
from mono_quant import quantize
from test_api import LOSS, Deep, run


@dataclass
class Output:
    logits: torch.Tensor
    nothing: None = None


class Counting(Deep):
    """Counts its calls, draws numbers, and returns a dataclass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return Output(super().forward(x) + 0 * torch.rand(1))


@pytest.mark.parametrize("options", [{"dynamic": True}, {"bits": 4}, {"bits": 16}, {}], ids=json.dumps)
def test_the_callers_model_is_never_changed(options):
    model, seen = Counting().train(), []
    model.body.eval()
    model.first.weight.requires_grad_(False)
    model.first.weight.grad = torch.ones(64, 32)
    model.out.register_forward_hook(lambda *_: seen.append(1))
    before, weights = pickle.dumps(model.state_dict()), {n: p.data_ptr() for n, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    attributes = [set(vars(m)) for m in model.modules()]
    random = torch.get_rng_state()
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    more = {"sample_input": x} if options else {"calibration_data": torch.utils.data.DataLoader(x, 5, shuffle=True)}
    result = quantize(model, **options, **more)
    assert torch.equal(torch.get_rng_state(), random)
    assert pickle.dumps(model.state_dict()) == before
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == weights
    assert [m.training for m in model.modules()] == modes == [m.training for m in result.model.modules()]
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert len(model.out._forward_hooks) == len(result.model.out._forward_hooks) == 1
    assert model.first.weight.grad is not None and not hasattr(model, "_mono_quant")
    assert result.info.output_error < LOSS[options.get("bits", 8)]
    seen.clear()
    run(result.model, x.half() if options.get("bits") == 16 else x)
    assert seen == [1]  # hooks come along
    for name, tensor in result.model.state_dict().items():  # and nothing is shared
        assert tensor.data_ptr() not in weights.values() or not tensor.numel(), name


def test_results_can_be_copied_and_pickled():
    x = torch.randn(5, 32)
    for options in ({"dynamic": True}, {"bits": 4}, {"bits": 16}):
        result = quantize(Deep(), **options)
        given = x.half() if "bits" in options and options["bits"] == 16 else x
        for other in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
            assert torch.equal(run(other.model, given), run(result.model, given))
            assert other.info == result.info and other.metadata == result.metadata
