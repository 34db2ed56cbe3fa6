"""Writes the seeds in corpus/ with the torch of tests/requirements.txt: target/venv/bin/python tests/fuzz/seeds.py"""

import argparse
import collections
import datetime
import io
import json
import pathlib
import struct
import warnings
import zipfile

import numpy
import torch

warnings.simplefilter("ignore")
torch.manual_seed(0)
HERE = pathlib.Path(__file__).parent / "corpus"
LARGEST = 4096


def write(target, name, data):
    assert len(data) < LARGEST, (target, name, len(data))
    (HERE / target).mkdir(parents=True, exist_ok=True)
    (HERE / target / name).write_bytes(data)


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(x)


def objects():
    """Everything that people save, as small as it gets."""
    w = torch.arange(4.0)
    yield "plain", {"w": w}
    yield "module", Small().state_dict()
    yield "nested", {"epoch": 3, "state_dict": {"a": w, "b": w.half()}, "lr": 0.1}
    yield "deep", {"net": {"a": {"w": w}, "b": {"w": w[1:]}}}
    yield "tied", {"a": w, "b": w, "c": w[:2]}
    yield "transposed", {"w": torch.arange(12.0).view(3, 4).t(), "v": torch.zeros(2, 3, 4).permute(2, 0, 1)}
    yield "expanded", {"w": torch.ones(1).expand(3, 5), "z": torch.zeros(0, 3)}
    yield "scalar", {"steps": torch.tensor(7)}
    yield "integers", {str(d)[6:]: torch.zeros(1, dtype=d) for d in [torch.uint8, torch.int8, torch.int16, torch.int64]}
    yield "narrow", {"a": torch.zeros(2, dtype=torch.float8_e4m3fn), "b": torch.zeros(2, dtype=torch.bfloat16)}
    yield "unsigned", {"a": torch.zeros(2, dtype=torch.uint16), "b": torch.zeros(2, dtype=torch.complex32)}
    yield "complex", {"a": torch.zeros(2, dtype=torch.complex64), "b": torch.zeros(1, dtype=torch.bool)}
    yield "parameter", {"w": torch.nn.Parameter(w), "b": torch.nn.Buffer(w)}
    yield "wrapped", {f"module.{k}": v for k, v in Small().state_dict().items()}
    yield "beside", {"model": {"w": w}, "args": argparse.Namespace(lr=1), "when": datetime.date(2026, 1, 1)}
    yield "numbers", {"model": {"w": w}, "a": numpy.float64(1), "big": 1 << 80, "n": -5, "t": (1, [2, None], True)}
    yield "array", {"model": {"w": w}, "rng": numpy.zeros(2, dtype="u4"), "path": pathlib.PurePosixPath("a/b")}
    yield "containers", {"model": {"w": w}, "c": collections.Counter("ab"), "d": collections.defaultdict(int), "s": {1}}
    yield "tensor", w
    yield "list", [w, w]
    yield "sparse", {"w": torch.eye(2).to_sparse()}
    yield "quantized", {"w": torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)}
    yield "conjugated", {"w": torch.zeros(2, dtype=torch.complex64).conj()}
    yield "meta", {"w": torch.zeros(2, device="meta")}
    optimizer = torch.optim.SGD([torch.nn.Parameter(w)], lr=0.1, momentum=0.9)
    yield "optimizer", {"model": {"w": w}, "optimizer": optimizer.state_dict()}


def torch_files():
    for name, value in objects():
        for legacy in [False, True]:
            if legacy and name in ("unsigned", "narrow"):
                continue
            out = io.BytesIO()
            torch.save(value, out, _use_new_zipfile_serialization=not legacy)
            data = out.getvalue()
            if legacy:
                if name in ("plain", "tied", "transposed", "nested", "numbers", "module"):
                    write("checkpoint", f"old-{name}", data)
                continue
            if name in ("plain", "module", "tied", "transposed", "expanded", "integers", "parameter", "beside"):
                write("checkpoint", name, data)
            archive = zipfile.ZipFile(io.BytesIO(data))
            pickled = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            write("pickle", name, archive.read(pickled))
    for protocol in [3, 4, 5]:
        out = io.BytesIO()
        torch.save({"a": torch.zeros(2), "b": b"bytes", "c": {1, 2}}, out, pickle_protocol=protocol)
        archive = zipfile.ZipFile(io.BytesIO(out.getvalue()))
        write("pickle", f"protocol-{protocol}", archive.read("archive/data.pkl"))
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(Small()), out)
    archive = zipfile.ZipFile(io.BytesIO(out.getvalue()))
    write("pickle", "script", archive.read(next(n for n in archive.namelist() if n.endswith("/data.pkl"))))
    # the archive itself is too long; without the code's debug information it is not
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as small:
        for name in archive.namelist():
            if "debug_pkl" not in name:
                small.writestr(zipfile.ZipInfo(name), archive.read(name))
    write("checkpoint", "script", out.getvalue())
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as compressed:
        compressed.writestr("x/data.pkl", b"\x80\x02}q\x00." * 9)
    write("checkpoint", "compressed", out.getvalue())


def safetensors(tensors, metadata=None):
    """As the library writes it; by hand, as some of these it would not write."""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "I32": 4, "I64": 8, "F8_E4M3": 1}
    for name, (dtype, shape, content) in tensors.items():
        length = sizes[dtype]
        for n in shape:
            length *= n
        part = content or bytes(length)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def safetensors_files():
    def shape(*numbers):
        return "I64", [len(numbers)], struct.pack(f"<{len(numbers)}q", *numbers)

    one = ("F32", [1], struct.pack("<f", 0.5))
    files = {
        "plain": {"w": ("F32", [2, 3], None), "b": ("F16", [2], None)},
        "empty": {"w": ("F32", [0, 4], None)},
        "narrow": {"a": ("F8_E4M3", [3], None), "b": ("BF16", [1, 1, 1], None), "c": ("I64", [], None)},
        "channel": {"l.weight": ("I8", [2, 4], None), "l.weight_scale": ("F32", [2, 1], None)},
        "tensor": {"l.weight": ("I8", [2, 4], None), "l.weight_scale": one},
        "offsets": {
            "l.weight": ("I8", [2, 4], None),
            "l.weight_scale": ("BF16", [2, 2], None),
            "l.weight_zero_point": ("I8", [2, 2], None),
        },
        "packed": {
            "l.weight_packed": ("I32", [2, 1], None),
            "l.weight_scale": ("F16", [2, 1], None),
            "l.weight_shape": shape(2, 8),
        },
        "packed-8": {
            "l.weight_packed": ("I32", [2, 2], None),
            "l.weight_scale": ("F16", [2, 2], None),
            "l.weight_shape": shape(2, 8),
            "l.weight_zero_point": ("I32", [1, 2], None),
        },
        "conv": {
            "c.weight_packed": ("I32", [2, 1], None),
            "c.weight_scale": one,
            "c.weight_shape": shape(2, 2, 2, 2),
            "c.input_scale": one,
        },
        "orphans": {"l.weight_packed": ("I32", [2, 1], None), "l.weight_g_idx": ("I32", [2], None)},
    }
    for name, tensors in files.items():
        write("safetensors", name, safetensors(tensors))
    view = {"offset": 0, "rows": 4, "cols": 2, "row_stride": 1, "col_stride": 4}
    notes = {
        "tied": {"b": "w"},
        "restore": {"l.weight": {"source": "e", "shape": [2, 4], "view": view}},
        "recipe": {"method": {"integer": {"bits": 8}}},
    }
    write("safetensors", "notes", safetensors(files["channel"], {"format": "pt", "monoquant": json.dumps(notes)}))
    write("safetensors", "either", safetensors({
        "l.weight_packed": ("I32", [2, 1], None),
        "l.weight_scale": one,
        "l.weight_shape": shape(2, 3),
    }, {"monoquant": json.dumps(notes)}))


def layouts():
    """config.json, a byte of 255, and a safetensors file."""
    def index(n, group):
        return "I32", [n], struct.pack(f"<{n}i", *(i // group for i in range(n)))

    def words(value, *shape):
        return "I32", list(shape), bytes([value]) * (4 * shape[0] * shape[1])

    scale = ("F16", [2, 8], struct.pack("<16e", *[0.5] * 16))
    gptq = {"l.qweight": words(0x9A, 2, 8), "l.qzeros": words(0x77, 2, 1), "l.scales": scale, "l.g_idx": index(16, 8)}
    awq = {"l.qweight": words(0x9A, 16, 1), "l.qzeros": words(0x85, 2, 1), "l.scales": scale, "n.weight": ("F16", [8, 8], None)}
    wide = {"l.qweight": words(0x9A, 4, 8), "l.qzeros": words(0x7F, 2, 2), "l.scales": scale}
    packed = {"l.weight_packed": words(0x3C, 8, 2), "l.weight_scale": ("F16", [8, 2], scale[2]),
              "l.weight_shape": ("I64", [2], struct.pack("<2q", 8, 16)), "l.weight_zero_point": words(0x88, 1, 2)}
    group = {"targets": ["Linear", "re:l$"], "format": "pack-quantized",
             "weights": {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 8}}
    configs = {
        "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": True, "checkpoint_format": "gptq"}),
        "gptq-2": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": False, "checkpoint_format": "gptq_v2"}),
        "gptq-8": (wide, {"quant_method": "gptq", "bits": 4, "group_size": 8, "dynamic": {"-:x": {}, "l.*": {"bits": 8}}}),
        "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm", "modules_to_not_convert": ["n"]}),
        "packed": (packed, {"quant_method": "compressed-tensors", "quantization_status": "compressed",
                            "format": "pack-quantized", "config_groups": {"group_0": group}, "ignore": ["n"]}),
    }
    for name, (tensors, config) in configs.items():
        write("layouts", name, json.dumps({"quantization_config": config}).encode() + b"\xff" + safetensors(tensors))


def gguf(keys, tensors, version=3, alignment=32, split=None):
    """As gguf-py writes it; by hand, as nobody writes some of these any more. Types of values and tensors by number."""

    def text(s):
        return struct.pack("<Q", len(s.encode())) + s.encode()

    def value(kind, v):
        if kind == 8:
            return text(v)
        if kind == 9:
            inner, items = v
            return struct.pack("<IQ", inner, len(items)) + b"".join(value(inner, i) for i in items)
        return struct.pack("<" + "BbHhIif?__Qqd"[kind], v)

    keys = dict(keys)
    if split:
        keys |= {"split.no": (2, split[0]), "split.count": (2, split[1]), "split.tensors.count": (5, split[2])}
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for name, (kind, v) in keys.items():
        out += text(name) + struct.pack("<I", kind) + value(kind, v)
    data = b""
    for name, (dims, kind, size) in tensors.items():
        out += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(data))
        data += bytes(i % 251 for i in range(size))
        data += bytes(-len(data) % alignment)
    return out + bytes(-len(out) % alignment) + data


def gguf_files():
    model = {"general.architecture": (8, "llama"), "llama.block_count": (4, 1)}
    tokens = {"tokenizer.ggml.tokens": (9, (8, ["<s>", "", "a"])), "tokenizer.ggml.scores": (9, (6, [0.0, 1.0]))}
    values = {str(kind): (kind, 1) for kind in [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12]}
    w = {"w": ([32, 2], 0, 256)}
    types = {str(n): ([32, 1], n, 32 * size) for n, size in [(0, 4), (1, 2), (24, 1), (25, 2), (26, 4), (27, 8), (28, 8), (30, 2)]}
    blocks = {str(n): ([256, 2], n, 2 * size) for n, size in [(2, 144), (3, 160), (8, 272), (12, 144), (14, 210)]}
    files = {
        "plain": gguf(model, w),
        "version-2": gguf(model, w, 2),
        "empty": gguf({}, {}),
        "tokens": gguf(model | tokens, w),
        "values": gguf(values, {}),
        "nested": gguf({"a": (9, (9, [(4, [1, 2]), (8, ["x"]), (9, [(0, [1])])]))}, {}),
        "aligned": gguf(model | {"general.alignment": (4, 64)}, w | {"v": ([1], 0, 4)}, alignment=64),
        "types": gguf(model, types),
        "blocks": gguf(model, blocks),
        "experts": gguf(model, {"blk.0.ffn_up_exps.weight": ([32, 2, 3], 8, 204), "s": ([], 0, 4)}),
        "split": gguf(model, w, split=(0, 2, 2)),
        "notes": gguf(model | {"monoquant.recipe": (8, json.dumps({"tied": {"b": "w"}, "restore": {}}))}, w),
        "foreign": gguf(model, {"w": ([256], 13, 176)}),
        "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    }
    for name, data in files.items():
        write("checkpoint", f"gguf-{name}", data)


def arguments():
    """A line an option."""
    write("arguments", "override", b"down_proj=bits=8,group-size=64,scheme=asymmetric,observer=mse")
    write("arguments", "strategy", b"a=b,c=strategy=group")
    options = ["--bits", "4", "--group-size", "32", "--format", "gptq,awq", "--include", "proj$", "--exclude", "(lm_head|embed)",
               "--layer-types", "linear,conv2d", "--override", "q_proj=bits=8", "--min-params", "100", "--max-shard-size", "5GB"]
    write("arguments", "options", "\n".join(options).encode())
    write("arguments", "percentile", b"--observer\npercentile\n--percentile\n99.5\n--scheme\nasymmetric\n--on-mismatch\nshrink")
    write("arguments", "preset", b"--preset\nfp16\n--saturate\n--on-nonfinite\nkeep\n--device\ngpu:0,cpu\n--max-memory\n1GiB")


def statistics():
    """What `monoquant calibrate` writes, with every observer."""
    facts = {"batches": 2, "samples": 8, "values": 64, "infinities": 0, "extremes": [-1.5, 2.0]}
    extremes = {"extremes": {"low": [-1.5], "high": [2.0]}}
    observers = {
        "minmax": ("min_max", None, extremes),
        "moving": ({"moving_average_min_max": {"averaging_constant": 0.01}}, None, extremes),
        "channels": ("min_max", 0, {"extremes": {"low": [-1.5, -1.0], "high": [2.0, 0.5]}}),
        "nothing": ({"histogram": {"bins": 8}}, None, None),
    }
    for name, (kind, axis, state) in observers.items():
        layer = {"kind": kind, "axis": axis, "facts": facts, "state": state}
        file = {"monoquant_calibration": 1, "symmetric": name == "minmax", "layers": {"l": layer}}
        write("statistics", name, json.dumps(file).encode())


def directories():
    """An index, and a config.json."""
    index = {"metadata": {}, "weight_map": {"a.weight": "a.safetensors", "b.weight": "b.safetensors"}}
    configs = {
        "llama": {"model_type": "llama", "hidden_size": 8, "vocab_size": 2, "tie_word_embeddings": False, "torch_dtype": "bfloat16"},
        "nested": {"model_type": "llava", "text_config": {"model_type": "llama", "hidden_size": 8, "dtype": "float32"}},
        "quantized": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "experts": {"model_type": "qwen3_moe", "num_experts": 2, "moe_intermediate_size": 8},
    }
    for name, config in configs.items():
        write("directory", name, json.dumps(index).encode() + b"\xff" + json.dumps(config).encode())


def plans():
    """Tensors, a config and options, a line each."""
    llama = [f"model.layers.{i}.{name}" for i in range(2) for name in
             ["self_attn.q_proj.weight BF16 64 64", "mlp.down_proj.weight BF16 64 192", "input_layernorm.weight BF16 64"]]
    llama += ["model.embed_tokens.weight BF16 96 64", "lm_head.weight BF16 96 64"]
    write("plan", "llama", "\n".join([*llama, '#{"model_type":"llama","hidden_size":64}', "--bits", "4", "--group-size", "32"]).encode())
    experts = ["model.layers.0.mlp.experts.gate_up_proj BF16 4 64 128", "model.layers.0.mlp.experts.down_proj BF16 4 64 64",
               "model.layers.0.mlp.gate.weight BF16 4 64"]
    write("plan", "experts", "\n".join([*experts, '#{"model_type":"qwen3_moe","hidden_size":64}', "--format", "gptq,awq", "--bits", "4",
                                        "--on-mismatch", "shrink"]).encode())
    mixed = ["conv.weight F32 8 3 3 3", "rnn.weight_ih_l0 F32 32 8", "rnn.weight_hh_l0 F32 32 8", "up.weight F16 4 8 2", "e.weight F32 9 8",
             "empty.weight F32 0 8", "scalar F32", "ids I64 7"]
    types = "linear,conv1d,conv2d,convtranspose,lstm,gru,embedding"
    write("plan", "mixed", "\n".join([*mixed, "--layer-types", types, "--strategy", "tensor", "--override", "rnn=bits=4,group-size=8"]).encode())
    write("plan", "cast", "\n".join([*mixed, "--preset", "bf16", "--exclude", "rnn", "--max-shard-size", "100B"]).encode())


torch_files()
safetensors_files()
arguments()
statistics()
directories()
plans()
layouts()
gguf_files()
total = sum(path.stat().st_size for path in HERE.rglob("*"))
print(f"{sum(p.is_file() for p in HERE.rglob('*'))} files, {total} bytes")
