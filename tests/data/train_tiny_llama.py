"""Trains tests/data/tiny-llama, a byte-level Llama of 0.67 M parameters.

Data: Jane Austen's six novels (public domain, from Project Gutenberg) as the R
package janeaustenr (MIT licence) ships them, Debian package r-cran-janeaustenr
1.0.0-1. Five are trained on, "Persuasion" is held out. Get the file with

    apt-get download r-cran-janeaustenr
    dpkg-deb -x r-cran-janeaustenr_*.deb austen
    target/venv/bin/python tests/data/train_tiny_llama.py \
        austen/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb

Seeded and deterministic for one torch version, CPU and thread count. The
measured numbers and the date are in README.md beside this file.
"""

import json
import math
import pathlib
import struct
import sys
import time
import zlib
from collections import Counter

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

OUT = pathlib.Path(__file__).parent / "tiny-llama"
STEPS, BATCH, CONTEXT, PEAK_LR = 2000, 16, 256, 3e-3
BOS, EOS, PAD = 256, 257, 258


def novels(path):
    """The novels in R's lazy-load database: zlib blocks of serialised strings."""
    raw, at, out = pathlib.Path(path).read_bytes(), 0, []
    while at < len(raw):
        block = zlib.decompressobj()
        data = block.decompress(raw[at + 4 :])
        at = len(raw) - len(block.unused_data)
        # XDR: header of 23 bytes, then a STRSXP (flags, length) of CHARSXPs.
        assert data[:2] == b"X\n" and data[18:23] == b"UTF-8"
        count, pos, lines = struct.unpack(">I", data[27:31])[0], 31, []
        for _ in range(count):
            size = struct.unpack(">I", data[pos + 4 : pos + 8])[0]
            lines.append(data[pos + 8 : pos + 8 + size])
            pos += 8 + size
        out.append(b"\n".join(lines))
    return out


def tokenizer():
    """One token per byte (ids 0..255), then the specials."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    char = {b: chr(b) for b in keep} | {b: chr(256 + i) for i, b in enumerate(rest)}
    vocab = {char[b]: b for b in range(256)}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        model_max_length=CONTEXT, clean_up_tokenization_spaces=False,
    )  # fmt: skip


@torch.no_grad()
def bits_per_byte(model, text):
    """Mean over non-overlapping windows; each window's first byte is context only."""
    model.eval()
    text = text.view(-1, CONTEXT)
    losses = [model(input_ids=x, labels=x).loss.item() for x in text.split(50)]
    model.train()
    return sum(losses) / len(losses) / math.log(2)


def main():
    torch.manual_seed(20)
    torch.use_deterministic_algorithms(True)
    books = novels(sys.argv[1])
    held_out = next(i for i, b in enumerate(books) if b.startswith(b"Persuasion"))
    as_tensor = lambda b: torch.frombuffer(bytearray(b), dtype=torch.uint8).long()
    valid = as_tensor(books.pop(held_out))[: 400 * CONTEXT]
    train_bytes = b"\n\n".join(books)
    train = as_tensor(train_bytes)

    config = LlamaConfig(
        vocab_size=320, hidden_size=128, intermediate_size=384, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, tie_word_embeddings=False,
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config).float()
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    opt = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=PEAK_LR, betas=(0.9, 0.95),
    )  # fmt: skip
    lr = lambda s: min((s + 1) / 100, 0.51 + 0.49 * math.cos(math.pi * s / STEPS))
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lr)
    began, recent = time.time(), []
    for step in range(STEPS):
        at = torch.randint(len(train) - CONTEXT, (BATCH,))
        x = torch.stack([train[i : i + CONTEXT] for i in at])
        x[torch.rand(BATCH) < 0.1, 0] = BOS  # so that a text may begin with <s>
        loss = model(input_ids=x, labels=x).loss
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        schedule.step()
        recent = [*recent[-99:], loss.item()]
        if step % 100 == 99:
            mean = sum(recent) / len(recent) / math.log(2)
            print(f"step {step + 1} train {mean:.3f} bits/byte {time.time() - began:.0f} s", flush=True)

    counts, total = Counter(train_bytes), len(train_bytes)
    unigram = -sum(math.log2((counts[b] + 1) / (total + 256)) for b in valid.tolist()) / len(valid)
    model = model.to(torch.bfloat16)
    print(f"{len(train)} train and {len(valid)} held-out bytes, {model.num_parameters()} parameters")
    print(f"held out: {bits_per_byte(model, valid):.4f} bits/byte in bf16, unigram {unigram:.4f}")

    OUT.mkdir(exist_ok=True)
    tok = tokenizer()
    tok.save_pretrained(OUT)
    specials = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (OUT / "special_tokens_map.json").write_text(json.dumps(specials, indent=2) + "\n")
    model.save_pretrained(OUT)
    (OUT / "model.safetensors").chmod(0o644)
    path = OUT / "config.json"
    saved = json.loads(path.read_text())
    saved["rope_theta"] = 10000.0  # also where readers of older configs look for it
    path.write_text(json.dumps(saved, indent=2) + "\n")
    text = tok("She had always", return_tensors="pt")
    out = model.eval().generate(**text, max_new_tokens=200, do_sample=True, temperature=0.7)
    print(tok.decode(out[0]))


main()
