"""What the tests share: running monoquant, reading what it wrote, measuring loss."""

import json
import math
import os
import pathlib
import subprocess

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors import safe_open
from safetensors.torch import load_file

REPOSITORY = pathlib.Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data"
TINY_LLAMA = DATA / "tiny-llama"
BINARY = os.environ.get("MONOQUANT", REPOSITORY / "target" / "release" / "monoquant")

# The opening of "Persuasion", on which tiny-llama was not trained.
TEXT = (
    "Sir Walter Elliot, of Kellynch Hall, in Somersetshire, was a man who, for his own amusement, "
    "never took up any book but the Baronetage; there he found occupation for an idle hour, and "
    "consolation in a distressed one; there his faculties were roused into admiration and respect, "
    "by contemplating the limited remnant of the earliest patents; there any unwelcome sensations, "
    "arising from domestic affairs changed naturally into pity and contempt as he turned over the "
    "almost endless creations of the last century; and there, if every other leaf were powerless, "
    "he could read his own history with an interest which never failed. This was the page at which "
    "the favourite volume always opened."
)


def monoquant(*args) -> str:
    """Runs the binary; fails with what it said. Returns its standard output."""
    done = subprocess.run([BINARY, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, f"monoquant {' '.join(map(str, args))}\n{done.stdout}{done.stderr}"
    return done.stdout


def quantize(model, output, *options) -> dict:
    """Quantizes and returns the report."""
    return json.loads(monoquant("quantize", "--json", "-m", model, "-o", output, *options))


def dequantize(model, output, *options) -> pathlib.Path:
    monoquant("dequantize", "--quiet", "-m", model, "-o", output, *options)
    return pathlib.Path(output)


def convert(model, output, layout: str, *options) -> pathlib.Path:
    monoquant("convert", "--quiet", "-m", model, "-o", output, "--format", layout, *options)
    return pathlib.Path(output)


def refused(*args) -> str:
    """What the binary says when it refuses its input, before anything is written."""
    done = subprocess.run([BINARY, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 2, f"monoquant {' '.join(map(str, args))}\n{done.returncode}\n{done.stdout}{done.stderr}"
    return done.stderr


def compare(a, b) -> dict:
    return json.loads(monoquant("compare", "--json", a, b))


def tensors(checkpoint) -> dict[str, torch.Tensor]:
    """All tensors of a file or of a directory's files."""
    path = pathlib.Path(checkpoint)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def metadata(file) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def codes(stored: dict[str, torch.Tensor], name: str, bits: int) -> tuple[torch.Tensor, ...]:
    """Codes, zero points and scales of a layer, all as matrices; zero points 0 where none are stored."""
    scale = stored[f"{name}_scale"]
    if f"{name}_packed" in stored:
        shape = stored[f"{name}_shape"].tolist()
        matrix = [shape[0], math.prod(shape[1:])]
        q = unpack_from_int32(stored[f"{name}_packed"], bits, torch.Size(matrix))
    else:
        q = stored[name].flatten(1)
    zero = stored.get(f"{name}_zero_point", torch.zeros(scale.shape, dtype=torch.int8))
    if zero.dtype == torch.int32:
        zero = unpack_from_int32(zero, bits, scale.shape, packed_dim=0)
    return q, zero.view(-1, scale.shape[-1]), scale.view(-1, scale.shape[-1])


def decoded(stored: dict[str, torch.Tensor], name: str, bits: int) -> np.ndarray:
    """(q − z) · s in float64."""
    q, zero, scale = (t.double().numpy() for t in codes(stored, name, bits))
    groups = q.reshape(len(q), scale.shape[1], -1)
    return ((groups - zero[..., None]) * scale[..., None]).reshape(q.shape)


def sqnr_db(signal: np.ndarray, quantized: np.ndarray) -> float:
    return 10 * math.log10(np.square(signal).sum() / np.square(signal - quantized).sum())


def relative_error(logits: torch.Tensor, expected: torch.Tensor) -> float:
    logits, expected = logits.double(), expected.double()
    return ((logits - expected).norm() / expected.norm()).item()


@torch.no_grad()
def bits_per_byte(model) -> float:
    """On TEXT, in windows as long as the model's context; each window's first byte is context only."""
    text = torch.tensor(list(TEXT.encode()[:512])).view(-1, 256)
    predicted = model(text).logits[:, :-1, :].float()
    return torch.nn.functional.cross_entropy(predicted.flatten(0, 1), text[:, 1:].flatten()).item() / math.log(2)
