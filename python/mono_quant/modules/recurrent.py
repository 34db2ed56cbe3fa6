"""LSTM and GRU: all weights are decoded, then torch's own kernel runs. Inputs are never quantized."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .base import QuantizedModule

_CONFIG = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")


class _Recurrent(QuantizedModule):
    """Buffers `weight_ih_l0_packed`, `weight_ih_l0_scale`, … for every layer and direction."""

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int = 0

    def __getattr__(self, name: str) -> Any:
        """`weight_ih_l0` and the like are decoded, in `compute_dtype`, made anew each time."""
        if name in self.__dict__.get("_shapes", ()):
            return self._weight(name, self._compute_dtype)
        return super().__getattr__(name)

    def flatten_parameters(self) -> None:
        """Nothing: weights are decoded for every run."""

    def _flat_weights(self, dtype: torch.dtype) -> list[Tensor]:
        """In the order of torch's kernels: of each layer and direction, matrices, biases, projection."""
        weights = []
        for layer in range(self.num_layers):
            for direction in ("", "_reverse") if self.bidirectional else ("",):
                suffix = f"_l{layer}{direction}"
                weights += [self._weight(kind + suffix, dtype) for kind in ("weight_ih", "weight_hh")]
                if self.bias:
                    weights += [self._parameters[kind + suffix].to(dtype) for kind in ("bias_ih", "bias_hh")]
                if self.proj_size:
                    weights.append(self._weight("weight_hr" + suffix, dtype))
        return weights

    def _run(self, x: Tensor | PackedSequence, states: list[Tensor] | None, sizes: list[int], kernel: Any) -> Any:
        """Output and final states, for inputs `[l, in]`, `[l, n, in]`, `[n, l, in]` (batch_first) or packed.

        states: each `[layers·directions, n, size]`, or without n for inputs without it; zero if None.
        sizes: of the states.
        """
        layers = self.num_layers * (2 if self.bidirectional else 1)
        if isinstance(x, PackedSequence):
            data, batch_sizes, order, back = x
            states = self._checked(states, data, layers, int(batch_sizes[0]), sizes)
            if order is not None:
                states = [state.index_select(1, order) for state in states]
            out, *finals = self._call(kernel, data, batch_sizes, states)
            if back is not None:
                finals = [final.index_select(1, back) for final in finals]
            return PackedSequence(out, batch_sizes, order, back), finals
        if x.dim() not in (2, 3):
            raise ValueError(f"{type(self).__name__}: inputs have 2 or 3 axes, not {x.dim()}")
        batched, axis = x.dim() == 3, 0 if self.batch_first else 1
        if not batched:
            x = x.unsqueeze(axis)
            states = None if states is None else [state.unsqueeze(1) for state in states]
        out, *finals = self._call(kernel, x, None, self._checked(states, x, layers, x.shape[axis], sizes))
        return (out, finals) if batched else (out.squeeze(axis), [final.squeeze(1) for final in finals])

    def _checked(
        self, states: list[Tensor] | None, x: Tensor, layers: int, batch: int, sizes: list[int]
    ) -> list[Tensor]:
        if x.shape[-1] != self.input_size:
            raise ValueError(f"inputs of {x.shape[-1]} features, expected {self.input_size}")
        shapes = [(layers, batch, size) for size in sizes]
        if states is None:
            return [x.new_zeros(shape) for shape in shapes]
        if [tuple(state.shape) for state in states] != shapes:
            raise ValueError(f"states of {[tuple(s.shape) for s in states]}, expected {shapes}")
        return states

    def _call(self, kernel: Any, x: Tensor, batch_sizes: Tensor | None, states: list[Tensor]) -> tuple[Tensor, ...]:
        state = states if len(states) > 1 else states[0]
        options = (bool(self.bias), self.num_layers, float(self.dropout), self.training, self.bidirectional)
        weights = self._flat_weights(x.dtype)
        if batch_sizes is None:
            found: tuple[Tensor, ...] = kernel(x, state, weights, *options, self.batch_first)
        else:
            found = kernel(x, batch_sizes, state, weights, *options)
        return found


class QuantizedLSTM(_Recurrent):
    """Inputs, states and results as nn.LSTM's: x, (h, c) → y, (h, c)."""

    float_class = nn.LSTM
    config_names = (*_CONFIG, "proj_size")

    def forward(self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        sizes = [self.proj_size or self.hidden_size, self.hidden_size]
        out, (h, c) = self._run(input, None if hx is None else list(hx), sizes, torch.lstm)
        return out, (h, c)


class QuantizedGRU(_Recurrent):
    """Inputs, state and results as nn.GRU's: x, h → y, h."""

    float_class = nn.GRU
    config_names = _CONFIG

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> Any:
        out, (h,) = self._run(input, None if hx is None else [hx], [self.hidden_size], torch.gru)
        return out, h
