"""A Hugging Face Llama directory as a GGUF file, written by gguf-py; and what llama.cpp computes with such a file."""

import ctypes
import json
import pathlib

import gguf
import numpy as np
import torch
import xllamacpp
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
