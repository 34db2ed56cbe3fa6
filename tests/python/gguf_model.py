"""A Hugging Face Llama directory as a GGUF file, written by gguf-py; and what llama.cpp computes with such a file."""

import ctypes
import json
import pathlib

import gguf
import numpy as np
import torch
import transformers as T
import xllamacpp
from helpers import REPOSITORY, TEXT
from safetensors.torch import load_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
STORED = {
    torch.float32: gguf.GGMLQuantizationType.F32,
    torch.float16: gguf.GGMLQuantizationType.F16,
    torch.bfloat16: gguf.GGMLQuantizationType.BF16,
}
BYTES = 256
LLAMA = REPOSITORY / "target" / "llama.cpp" / "libllama.v0.5.0.so"  # tests/setup puts it there


def gguf_name(name: str) -> str:
    module = name.removesuffix(".weight")
    if module in OUTER:
        return f"{OUTER[module]}.weight"
    layer, inner = module.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[inner]}.weight"


def permuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q and k in llama.cpp's order: pairs to rotate are neighbours there, half a head apart here."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


def gguf_tensors(model) -> dict[str, torch.Tensor]:
    """A directory's tensors under GGUF's names and in its order of rows."""
    config = json.loads((pathlib.Path(model) / "config.json").read_text())
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = {}
    for name, tensor in load_file(pathlib.Path(model) / "model.safetensors").items():
        name = gguf_name(name)
        module = name.split(".")[-2]
        found[name] = permuted(tensor, heads[module]) if module in heads else tensor
    return found


def write_gguf(model, output, dtype: torch.dtype) -> pathlib.Path:
    """Matrices in `dtype`, norms in F32; the vocabulary is SentencePiece's with nothing but bytes."""
    config = json.loads((pathlib.Path(model) / "config.json").read_text())
    writer = gguf.GGUFWriter(str(output), "llama")
    writer.add_name("tiny")
    writer.add_file_type({torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}[dtype])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    special = {BYTES: "<s>", BYTES + 1: "</s>", BYTES + 2: "<pad>"}
    kinds = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(
        [f"<0x{i:02X}>" if i < BYTES else special.get(i, f"<unused{i}>") for i in range(config["vocab_size"])]
    )
    writer.add_token_scores([0.0] * config["vocab_size"])
    writer.add_token_types(
        [
            kinds.BYTE if i < BYTES else kinds.CONTROL if i in special else kinds.UNUSED
            for i in range(config["vocab_size"])
        ]
    )
    writer.add_bos_token_id(BYTES)
    writer.add_eos_token_id(BYTES + 1)
    writer.add_pad_token_id(BYTES + 2)
    for name, tensor in gguf_tensors(model).items():
        tensor = tensor.to(dtype if tensor.ndim > 1 else torch.float32)
        array = tensor.view(torch.uint8).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        writer.add_tensor(name, array, raw_dtype=STORED[tensor.dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return pathlib.Path(output)


def stored(file) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def decoded(tensor: gguf.ReaderTensor) -> np.ndarray:
    """gguf-py's decoding, in f32 and the matrix's shape."""
    values = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
    return values.reshape(tuple(reversed(tensor.shape.tolist())))


def keys(file) -> dict[str, object]:
    """All metadata."""
    return {
        name: field.contents() for name, field in gguf.GGUFReader(file).fields.items() if not name.startswith("GGUF.")
    }


def save_wide_llama(path, layers: int = 4, tied: bool = False):
    """A random Llama whose rows are whole blocks of 256, which K-quants need and tiny-llama's are not."""
    torch.manual_seed(0)
    config = T.LlamaConfig(
        vocab_size=320,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=256,
        rope_theta=10000.0,
        tie_word_embeddings=tied,
    )
    model = T.LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    model.bfloat16().save_pretrained(path)
    file = pathlib.Path(path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_theta": 10000.0}))
    return path


PROMPTS = [40, 120, 200]


def prompt(length: int) -> list[int]:
    return [BYTES, *TEXT.encode()[:length]]


def log_probabilities(file) -> torch.Tensor:
    """llama.cpp's log-probabilities of every token after each prompt, on the CPU, with attention in f32."""
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = 256
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.fit_params = False
    params.verbosity = -1
    params.cpuparams.n_threads = 2
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    rows = []
    for length in PROMPTS:
        request = {"prompt": prompt(length), "n_predict": 1, "n_probs": 320, "temperature": -1, "cache_prompt": False}
        answer = server.handle_completions(request)
        top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        assert len(top) == 320
        rows.append([entry["logprob"] for entry in sorted(top, key=lambda entry: entry["id"])])
    return torch.tensor(rows)


@torch.no_grad()
def expected_log_probabilities(model) -> torch.Tensor:
    """The same by transformers, in f32."""
    loaded = T.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    rows = [loaded(torch.tensor([prompt(length)])).logits[0, -1] for length in PROMPTS]
    return torch.log_softmax(torch.stack(rows), -1)


def library() -> ctypes.CDLL:
    """ggml, whose functions xllamacpp's shared object exports."""
    return ctypes.CDLL(xllamacpp.xllamacpp.__file__)


def quantize_chunk(weight: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """ggml's own blocks of a matrix, a row of bytes a row."""
    ggml = library()
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    rows, columns = weight.shape
    source = np.ascontiguousarray(weight, np.float32)
    size, bytes_ = gguf.GGML_QUANT_SIZES[kind]
    target = np.zeros((rows, columns // size * bytes_), np.uint8)
    ggml.ggml_quantize_init(int(kind))
    written = ggml.ggml_quantize_chunk(
        ctypes.c_int(kind),
        source.ctypes.data_as(ctypes.c_void_p),
        target.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(0),
        ctypes.c_int64(rows),
        ctypes.c_int64(columns),
        None,
    )
    assert written == target.nbytes
    return target


class Parameters(ctypes.Structure):
    """llama_model_quantize_params: its first fields, and room for the others."""

    _fields_ = [("threads", ctypes.c_int32), ("file_type", ctypes.c_int32), ("rest", ctypes.c_uint8 * 248)]


def llama_quantize(source, output, file_type: int) -> pathlib.Path:
    """What llama.cpp's own program llama-quantize makes of a file."""
    llama = ctypes.CDLL(str(LLAMA))
    llama.llama_model_quantize_default_params.restype = Parameters
    params = llama.llama_model_quantize_default_params()
    params.threads, params.file_type = 2, file_type
    assert llama.llama_model_quantize(str(source).encode(), str(output).encode(), ctypes.byref(params)) == 0
    return pathlib.Path(output)
