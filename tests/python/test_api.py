"""`quantize` and its siblings: every form of model in, a model that runs out, the caller's model untouched."""

import mono_quant
import pytest
import torch
from helpers import tensors
from mono_quant import InputError, QuantizationConfig, QuantizationError, dynamic_quantize, quantize, static_quantize
from mono_quant.modules import QuantizedModule
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune
from transformers import (
    BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
)  # fmt: skip

# Relative errors of outputs that are not exceeded by models of random weights and two or three layers.
LOSS = {8: 0.03, 4: 0.2, 16: 0.002}
BITS = pytest.mark.parametrize("bits", [8, 4, 16])


class Deep(nn.Module):
    """Linears at every depth, in every container."""

    def __init__(self, wide=64, dtype=torch.float32):
        super().__init__()
        self.first = nn.Linear(32, wide)
        self.body = nn.Sequential(nn.Sequential(nn.Linear(wide, wide), nn.ReLU()), nn.ModuleList([nn.Linear(wide, wide)])[0])
        self.heads = nn.ModuleDict({"a": nn.Linear(wide, 32), "b": nn.ModuleList([nn.Linear(wide, 32)])})
        self.norm = nn.BatchNorm1d(32)
        self.out = nn.Linear(32, 16)
        self.to(dtype)

    def forward(self, x):
        x = self.body(torch.relu(self.first(x)))
        return self.out(self.norm(self.heads["a"](x) + self.heads["b"][0](x)))


LAYERS = ["first", "body.0.0", "body.1", "heads.a", "heads.b.0", "out"]


def run(model, x):
    with torch.no_grad():
        return model.eval()(x)


def error(expected, found):
    expected, found = expected.double(), found.double()
    return ((expected - found).norm() / expected.norm()).item()


def quantized_names(model):
    return [name for name, m in model.named_modules() if isinstance(m, QuantizedModule)]


# The published package's own tests


class SimpleModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(10, 5)

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize("bits", [8, 16])
def test_published_quantize(bits):
    result = quantize(SimpleModel(), bits=bits, dynamic=True)
    assert result and result.success and result.model is not None and result.info is not None


def test_published_config_version_and_names():
    config = QuantizationConfig(dtype=torch.qint8, symmetric=True, per_channel=True)
    assert config.dtype == torch.qint8 and config.symmetric is True and config.per_channel is True
    assert len(mono_quant.__version__.split(".")) >= 2
    for name in ("quantize", "dynamic_quantize", "static_quantize", "save_model", "load_model", "QuantizationConfig"):
        assert hasattr(mono_quant, name)
    assert all(hasattr(mono_quant, name) for name in mono_quant.__all__)
    assert set(mono_quant.__all__) <= set(dir(mono_quant))
    with pytest.raises(AttributeError):
        mono_quant.nothing


# Modules


@BITS
def test_linears_at_every_depth_are_quantized_and_run(bits):
    model, x = Deep(), torch.randn(20, 32)
    result = quantize(model, bits=bits, dynamic=True, run_validation=True)
    quantized = {8: LAYERS, 4: LAYERS[:-1], 16: []}[bits]  # at 4 bits the last projection stays
    assert quantized_names(result.model) == quantized
    assert result.info.selected_layers == (quantized if bits < 16 else [*LAYERS[:-1], "norm", "out"])
    given = x.half() if bits == 16 else x
    assert error(run(model, x), run(result.model, given)) < LOSS[bits]
    for name in quantized:
        assert "_parameters" in vars(result.model.get_submodule(name))
        assert not any(p.numel() > 64 for p in result.model.get_submodule(name).parameters())


@BITS
def test_a_bare_linear(bits):
    model, x = nn.Linear(64, 32), torch.randn(5, 64)
    result = quantize(model, bits=bits, dynamic=True)
    assert isinstance(result.model, QuantizedModule) == (bits != 16)
    assert result.info.selected_layers == [""]
    assert error(run(model, x), run(result.model, x.half() if bits == 16 else x)) < LOSS[bits]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@BITS
def test_half_precision_models(bits, dtype):
    model, x = Deep(dtype=dtype), torch.randn(20, 32, dtype=dtype)
    if bits == 16 and dtype == torch.float16:
        with pytest.raises(QuantizationError, match="nothing to cast"):
            quantize(model, bits=bits)
        return
    result = quantize(model, bits=bits, dynamic=True, sample_input=x)
    found = run(result.model, x.half() if bits == 16 else x)
    assert found.dtype == (torch.float16 if bits == 16 else dtype)
    assert error(run(model, x), found) < LOSS[bits] + 0.01  # bfloat16's own rounding
    assert result.info.output_error < LOSS[bits] + 0.01


class Sharing(nn.Module):
    """One module under two names, and another that shares its weight only."""

    def __init__(self):
        super().__init__()
        self.a = self.b = nn.Linear(32, 32)
        self.c = nn.Linear(32, 32)
        self.c.weight = self.a.weight
        self.out = nn.Linear(32, 8)

    def forward(self, x):
        return self.out(self.c(self.b(self.a(x))))


@pytest.mark.parametrize("bits", [8, 4])
def test_shared_modules_and_tied_weights_stay_so(bits):
    model, x = Sharing(), torch.randn(5, 32)
    result = quantize(model, bits=bits, dynamic=True)
    found = result.model
    assert found.a is found.b and found.c is not found.a and isinstance(found.a, QuantizedModule)
    part = "weight" if bits == 8 else "weight_packed"
    assert found.state_dict()[f"a.{part}"].data_ptr() == found.state_dict()[f"c.{part}"].data_ptr()
    assert result.info.selected_layers[:3] == ["a", "b", "c"]
    assert error(run(model, x), run(found, x)) < LOSS[bits]
    assert result.info.original_size_mb * 2**20 == 4 * (32 * 32 + 32 * 2 + 32 * 8 + 8)


def test_weights_tied_to_something_that_stays_float_stay_with_it():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.fc, self.head = nn.Embedding(40, 32), nn.Linear(32, 32), nn.Linear(32, 40, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(torch.relu(self.fc(self.embed(ids))))

    model, ids = Tied(), torch.randint(0, 40, (3, 7))
    for more in ({}, {"layer_types": [nn.Linear, nn.Embedding]}, {"skip": ["head"]}):
        result = quantize(model, dynamic=True, **more)
        assert result.model.head.weight is result.model.embed.weight
        assert quantized_names(result.model) == ["fc"]
        assert set(result.info.skipped_layers) == {"embed", "head"}
        assert result.info.skip_reasons["head.weight"] == "the same as embed.weight"
        assert error(run(model, ids), run(result.model, ids)) < LOSS[8]


def test_tied_layers_with_static_inputs_stay_float_because_each_needs_a_scale():
    model, x = Sharing(), torch.randn(20, 32)
    result = quantize(model, calibration_data=[x])
    assert quantized_names(result.model) == ["out"]
    assert "scale of their own" in result.info.skip_reasons["a.weight"]


class Scaled(nn.Linear):
    """A subclass whose forward is its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Plain(nn.Linear):
    """A subclass that computes what its base does."""


def test_subclasses_keep_their_own_forward():
    model, x = nn.Sequential(Scaled(32, 32), Plain(32, 16)), torch.randn(5, 32)
    result = quantize(model, dynamic=True)
    assert type(result.model[0]) is Scaled and quantized_names(result.model) == ["1"]
    assert result.info.skip_reasons["0.weight"] == "Scaled computes in a way of its own"
    assert result.info.skipped_layers == ["0"]
    assert error(run(model, x), run(result.model, x)) < LOSS[8]


@pytest.mark.parametrize("kind", ["parametrize", "weight_norm", "pruned"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_computed_weights_stay(kind):
    make = {
        "parametrize": nn.utils.parametrizations.weight_norm,
        "weight_norm": nn.utils.weight_norm,
        "pruned": lambda m: prune.random_unstructured(m, "weight", 0.3),
    }
    model, x = nn.Sequential(make[kind](nn.Linear(32, 32)), nn.Linear(32, 8)), torch.randn(5, 32)
    result = quantize(model, dynamic=True)
    assert quantized_names(result.model) == ["1"] and result.info.skipped_layers == ["0"]
    assert any("parametrized" in reason for reason in result.info.skip_reasons.values())
    assert error(run(model, x), run(result.model, x)) < LOSS[8]


def test_convolutions_recurrent_layers_and_attention():
    conv = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(16),
                         nn.ConvTranspose2d(16, 4, 2, 2), nn.Flatten(), nn.Linear(4 * 256, 8))  # fmt: skip
    models = [(conv, torch.randn(2, 3, 8, 8), ["0", "2", "4"]),
              (nn.LSTM(16, 24, 2, bidirectional=True), torch.randn(5, 3, 16), [""]),
              (nn.GRU(16, 24), torch.randn(5, 3, 16), [""]),
              (nn.TransformerEncoderLayer(32, 4, 64), torch.randn(5, 3, 32),
               ["self_attn.out_proj", "linear1", "linear2"])]  # fmt: skip
    for model, x, names in models:
        result = quantize(model, dynamic=True)
        assert result.info.selected_layers == quantized_names(result.model) == names
        expected, found = run(model, x), run(result.model, x)
        pair = (expected[0], found[0]) if isinstance(expected, tuple) else (expected, found)
        assert error(*pair) < LOSS[8]
    assert result.info.skip_reasons["self_attn.in_proj_weight"] == "MultiheadAttention has no quantized form"
    assert "self_attn" in result.info.skipped_layers


SMALL = {"vocab_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 96}


def llama(**more):
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2, **more)).eval()


FAMILIES = {
    "llama": llama,
    "llama tied": lambda: llama(tie_word_embeddings=True),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64)).eval(),
    "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL)).eval(),
}


@pytest.mark.parametrize("family", FAMILIES)
@BITS
def test_models_of_transformers(family, bits):
    model, ids = FAMILIES[family](), torch.randint(0, 128, (2, 9))
    result = quantize(model, bits=bits, dynamic=True, sample_input={"input_ids": ids})
    with torch.no_grad():
        expected, found = model(input_ids=ids).logits, result.model(input_ids=ids).logits
    assert error(expected, found) < 1.5 * LOSS[bits]
    assert result.info.output_error < 1.5 * LOSS[bits] and isinstance(result.model, type(model))
    if bits != 16:
        kinds = {type(m).__name__ for m in result.model.modules() if isinstance(m, QuantizedModule)}
        assert kinds == {"QuantizedLinear"}  # embeddings stay
        assert len(quantized_names(result.model)) >= 7


# State dicts and files


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["state dict", "safetensors", "pt"])
def test_state_dicts_and_files(dtype, form, tmp_path):
    state = Deep(dtype=dtype).state_dict()
    path = {"state dict": state, "safetensors": tmp_path / "m.safetensors", "pt": str(tmp_path / "m.pt")}[form]
    if form == "safetensors":
        save_file(state, path)
    elif form == "pt":
        torch.save(state, path)
    result = quantize(path, bits=8, dynamic=True)
    assert sorted(result.info.selected_layers) == sorted(LAYERS) and result.path is None
    for name, tensor in state.items():
        if name.removesuffix(".weight") in LAYERS:
            found, scale = result.model[name], result.model[f"{name}_scale"]
            assert found.dtype == torch.int8 and scale.dtype == dtype
            assert error(tensor, found * scale.double()) < 0.01
        else:
            assert torch.equal(result.model[name], tensor) and name in result.info.skip_reasons
    written = quantize(path, bits=4, output=tmp_path / "q.safetensors") if form != "state dict" else None
    if written:
        assert written.model is None and written.path == tmp_path / "q.safetensors"
        assert "first.weight_packed" in tensors(written.path)


def test_strided_and_tied_state_dicts():
    weight = torch.randn(64, 32)
    whole = quantize({"a.weight": weight.clone()}, dynamic=True).model
    for view in (weight.t().contiguous().t(), torch.randn(64, 64)[:, ::2].copy_(weight)):
        assert not view.is_contiguous()
        found = quantize({"a.weight": view, "b.weight": view}, dynamic=True)
        for name in ("a", "b"):
            assert torch.equal(found.model[f"{name}.weight"], whole["a.weight"])
            assert torch.equal(found.model[f"{name}.weight_scale"], whole["a.weight_scale"])
        assert found.info.selected_layers == ["a", "b"]


# The siblings, and what is refused


def test_siblings():
    model, data = Deep(), [torch.randn(20, 32)]
    quantized, skipped = dynamic_quantize(model, skip_layer_names=["first"], modules_to_not_convert=["out"])
    assert skipped == ["first", "norm", "out"] and quantized_names(quantized) == LAYERS[1:-1]
    assert quantized.body[1].schemes["weight"].symmetric is False
    quantized, skipped = dynamic_quantize(model, dtype=torch.float16)
    assert skipped == [] and quantized.first.weight.dtype == torch.float16
    quantized, info = static_quantize(model, data, symmetric=True, layer_names=["body"], num_calibration_samples=7)
    assert quantized_names(quantized) == ["body.0.0", "body.1"] and info.calibration_samples_used == 7
    assert quantized.body[1].inputs == "static" and info.output_error < LOSS[8]
    quantized, info = static_quantize(model, data, config=QuantizationConfig(bits=4), group_size=16)
    assert info.bits == 4 and info.group_size == 16 and info.calibration_samples_used == 0


def test_what_is_no_model():
    lazy, scripted = nn.Sequential(nn.LazyLinear(4)), torch.jit.script(nn.Linear(4, 4))
    wrong = [None, 3, nn.Linear, [nn.Linear(4, 4)], nn.ReLU(), {}, {"a": 1}, {3: torch.ones(2, 2)}, lazy, scripted,
             nn.Linear(4, 4, device="meta"), {"a.weight": torch.ones(4, 4).to_sparse()}, "missing.pt"]  # fmt: skip
    for model in wrong:
        with pytest.raises(InputError) as caught:
            quantize(model, dynamic=True)
        assert caught.value.suggestion, model
    with pytest.raises(QuantizationError, match="quantized already") as caught:
        quantize(quantize(Deep(), dynamic=True).model, dynamic=True)
    assert "dequantize_model" in caught.value.suggestion
