"""Architectures that store weights in ways of their own: quantized, dequantized and loaded again by transformers.

The models are random, with weights large enough that every layer matters to the logits, and without ties in top-k:
all experts run, so no rounding changes which.
"""

import pytest
import torch
import transformers as T
from helpers import compare, dequantize, quantize, relative_error, tensors

TEXT_MODEL = dict(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
EXPERTS = dict(num_experts_per_tok=4)
ENCODER = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
MODELS = {
    "gpt2": (T.GPT2LMHeadModel, T.GPT2Config(vocab_size=96, n_positions=64, n_embd=64, n_layer=2, n_head=4)),
    "llama, tied": (T.LlamaForCausalLM, T.LlamaConfig(**TEXT_MODEL, tie_word_embeddings=True)),
    "mixtral": (T.MixtralForCausalLM, T.MixtralConfig(**TEXT_MODEL, **EXPERTS, num_local_experts=4)),
    "qwen3_moe": (
        T.Qwen3MoeForCausalLM,
        T.Qwen3MoeConfig(**TEXT_MODEL, **EXPERTS, num_experts=4, moe_intermediate_size=32),
    ),
    "llama4": (
        T.Llama4ForCausalLM,
        T.Llama4TextConfig(
            **TEXT_MODEL, **EXPERTS, num_local_experts=4, intermediate_size_mlp=96, interleave_moe_layer_step=1
        ),
    ),
    "gpt_oss": (T.GptOssForCausalLM, T.GptOssConfig(**TEXT_MODEL, **EXPERTS, num_local_experts=4)),
    "t5": (
        T.T5ForConditionalGeneration,
        T.T5Config(vocab_size=96, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4),
    ),
    "bert": (T.BertForMaskedLM, T.BertConfig(**ENCODER, vocab_size=96, max_position_embeddings=64)),
    "vit": (T.ViTForImageClassification, T.ViTConfig(**ENCODER, image_size=32, patch_size=8, num_labels=10)),
}
TIED = {"gpt2", "llama, tied", "t5", "bert"}
# Options, SQNR of every layer in dB (measured: 21.3 to 22.0, and 43.0 to 45.5), and relative error of the logits
# (measured: 0.12 to 0.26, and 0.007 to 0.016).
INT4 = (["--bits", 4, "--group-size", 32, "--on-mismatch", "shrink"], (21.0, 22.5), 0.3)
INT8 = (["--bits", 8], (42.5, 46), 0.03)
W8A16 = ["--preset", "w8a16"]

widths = pytest.mark.parametrize("options, decibels, error", [INT4, INT8], ids=["int4", "int8"])
packed = pytest.mark.parametrize("options", [INT4[0], W8A16], ids=["w4a16", "w8a16"])
every = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Makes a model, once: its directory."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            model_class, config = MODELS[name]
            model = model_class(config)
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=0.06)
            made[name] = tmp_path_factory.mktemp("model")
            model.bfloat16().save_pretrained(made[name])
        return made[name]

    return get


def load(name, path, **options):
    model, info = MODELS[name][0].from_pretrained(path, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


@torch.no_grad()
def logits(name, model):
    tokens = torch.arange(3, 35)[None]
    if name == "vit":
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
        return model(pixel_values=pixels.to(model.dtype)).logits
    if name == "t5":
        return model(input_ids=tokens, decoder_input_ids=tokens).logits
    return model(input_ids=tokens).logits


@every
@widths
def test_dequantized_models_load_and_compute_nearly_the_same(name, options, decibels, error, saved, tmp_path):
    report = quantize(saved(name), tmp_path / "q", *options)
    dequantize(tmp_path / "q", tmp_path / "d")
    before, after = tensors(saved(name)), tensors(tmp_path / "d")
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    original = load(name, saved(name), dtype=torch.float32)
    restored = load(name, tmp_path / "d", dtype=torch.float32)
    assert relative_error(logits(name, restored), logits(name, original)) < error
    layers = [entry for entry in report["tensors"] if "scheme" in entry]
    assert len(layers) >= 8
    found = [entry["sqnr_db"] for entry in layers]
    assert decibels[0] < min(found) and max(found) < decibels[1]


@every
@widths
def test_compare_finds_every_weight_and_the_same_loss(name, options, decibels, error, saved, tmp_path):
    report = quantize(saved(name), tmp_path / "q", *options)
    dequantize(tmp_path / "q", tmp_path / "d")
    for other in ("q", "d"):
        compared = compare(saved(name), tmp_path / other)
        assert compared["only"] == [[], []] and compared["unlike"] == []
        lossy = [d for d in compared["differences"] if d["sqnr_db"] != 999]
        found = [d["sqnr_db"] for d in lossy]
        assert decibels[0] < min(found) and max(found) < decibels[1]
        if other == "q":
            reported = {e["name"]: e["sqnr_db"] for e in report["tensors"] if "scheme" in e}
            assert {d["name"]: pytest.approx(d["sqnr_db"], abs=0.01) for d in lossy} == reported


@pytest.mark.parametrize("name", sorted(TIED))
def test_tied_weights_stay_tied(name, saved, tmp_path):
    quantize(saved(name), tmp_path / "q", "--bits", 8)
    dequantize(tmp_path / "q", tmp_path / "d")
    model = load(name, tmp_path / "d")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    original = load(name, saved(name))
    assert torch.equal(model.get_input_embeddings().weight, original.get_input_embeddings().weight)


@pytest.mark.parametrize("name", ["llama, tied", "mixtral", "qwen3_moe", "llama4", "vit"])
@packed
def test_packed_models_load_as_they_are(name, options, saved, tmp_path):
    quantize(saved(name), tmp_path / "q", *options)
    dense = load(name, dequantize(tmp_path / "q", tmp_path / "d"))
    assert torch.equal(logits(name, load(name, tmp_path / "q")), logits(name, dense))


@pytest.mark.parametrize("name", ["t5", "bert"])
@packed
def test_packed_encoders_load_dequantized(name, options, saved, tmp_path):
    quantize(saved(name), tmp_path / "q", *options)
    dense = load(name, dequantize(tmp_path / "q", tmp_path / "d"))
    loaded = load(name, tmp_path / "q", quantization_config=T.CompressedTensorsConfig(dequantize=True))
    assert torch.equal(logits(name, loaded), logits(name, dense))


@pytest.mark.parametrize("name", ["llama, tied", "llama4", "t5", "bert", "vit"])
def test_w8a8_models_load_as_they_are(name, saved, tmp_path):
    quantize(saved(name), tmp_path / "q", "--bits", 8)
    dense = load(name, dequantize(tmp_path / "q", tmp_path / "d"))
    # what int8 inputs cost; measured: at most 0.024
    assert relative_error(logits(name, load(name, tmp_path / "q")), logits(name, dense)) < 0.03


@pytest.mark.parametrize("name", ["llama, tied", "llama4", "vit"])
def test_models_that_load_are_not_said_to_be_conv1d(name, saved, tmp_path):
    assert not any("Conv1D" in note for note in quantize(saved(name), tmp_path / "q", "--bits", 8)["notes"])


@pytest.mark.parametrize(
    "name, options",
    [("gpt2", INT8[0]), ("mixtral", INT8[0]), ("qwen3_moe", INT8[0]), ("gpt_oss", INT8[0]), ("gpt_oss", W8A16)],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value)),
)
def test_what_transformers_cannot_load_is_noted(name, options, saved, tmp_path):
    notes = quantize(saved(name), tmp_path / "q", *options)["notes"]
    assert any("transformers" in note and ("Conv1D" in note) == (name == "gpt2") for note in notes)
    with pytest.raises((RuntimeError, AssertionError)):
        load(name, tmp_path / "q")


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_of_different_bits_are_noted(name, saved, tmp_path):
    """transformers decodes all experts of a model by one group of the config, without a word."""
    options = ["--bits", 4, "--group-size", 32, "--override", r"experts\.1\.=bits=8"]
    notes = quantize(saved(name), tmp_path / "q", *options)["notes"]
    assert any("transformers" in note and "experts" in note for note in notes)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_asymmetric_experts_are_not_said_to_load(name, saved, tmp_path):
    notes = quantize(saved(name), tmp_path / "q", *INT4[0], "--scheme", "asymmetric")["notes"]
    config = T.CompressedTensorsConfig(dequantize=True)
    with pytest.raises(RuntimeError):
        load(name, tmp_path / "q", quantization_config=config)
    assert any("transformers" in note and "experts" in note for note in notes)
