"""Lookup tables: only the rows that are looked up are decoded."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .codes import decode, unpack
from .parts import PACKED, SCALE, ZERO_POINT
from .weight import WithWeight


class _Table(WithWeight):
    """With `max_norm`, longer rows are shortened as they are looked up, to what nn.Embedding would return. The stored
    codes stay; nn.Embedding changes its weight."""

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    max_norm: float | None
    norm_type: float

    def _look_up(self, ids: Tensor) -> Tensor:
        """Integers `[n]` → `[n, dim]` in `compute_dtype`."""
        scheme = self.schemes["weight"]
        scale, zero_point = self._buffers["weight" + SCALE], self._zero_points_of(ids)
        if scheme.packed:
            codes = self._buffers["weight" + PACKED].index_select(0, ids)
            codes = unpack(codes, scheme.bits, math.prod(self._shapes["weight"][1:]))
        else:
            codes = self._buffers["weight"].index_select(0, ids)
        rows = decode(codes, scale if scheme.per_tensor else scale.index_select(0, ids), zero_point)
        if self.max_norm is not None:
            norms = rows.norm(self.norm_type, dim=1, keepdim=True)
            rows = torch.where(norms > self.max_norm, rows * (self.max_norm / (norms + 1e-7)), rows)
        return rows.to(self._compute_dtype)

    def _zero_points_of(self, ids: Tensor) -> Tensor | None:
        scheme = self.schemes["weight"]
        if scheme.symmetric or scheme.per_tensor:
            return self._zero_points("weight", 0, self.num_embeddings)
        stored = self._buffers["weight" + ZERO_POINT]
        if not scheme.packed:
            return stored.index_select(0, ids)
        per_word = 32 // scheme.bits
        shift = (ids % per_word * scheme.bits).unsqueeze(1)
        unsigned = stored.index_select(0, ids // per_word) >> shift & ((1 << scheme.bits) - 1)
        return unsigned - (1 << (scheme.bits - 1))


class QuantizedEmbedding(_Table):
    """Integers `[…]` → `[…, dim]` in `compute_dtype`."""

    float_class = nn.Embedding
    config_names = (
        "num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse",
    )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        return self._look_up(input.reshape(-1)).view(*input.shape, self.embedding_dim)


class QuantizedEmbeddingBag(_Table):
    """Bags of integers as nn.EmbeddingBag takes them → `[bags, dim]` in `compute_dtype`."""

    mode: str
    include_last_offset: bool

    float_class = nn.EmbeddingBag
    config_names = (
        "num_embeddings", "embedding_dim", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse",
        "include_last_offset", "padding_idx",
    )  # fmt: skip

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        rows = self._look_up(input.reshape(-1))
        places = torch.arange(input.numel(), device=input.device).view(input.shape)
        padding = None
        if self.padding_idx is not None:
            # all padding goes to one more row, which the bags then leave out
            padding = input.numel()
            rows = torch.cat([rows, rows.new_zeros(1, self.embedding_dim)])
            places = places.masked_fill(input == self.padding_idx, padding)
        return F.embedding_bag(
            places,
            rows,
            None if offsets is None else offsets.long(),
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )
