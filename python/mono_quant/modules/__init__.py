"""Modules that run on codes, each in the place of a standard one."""

from __future__ import annotations

from torch import nn

from .base import QuantizedModule
from .codes import WeightScheme
from .conv import QuantizedConv1d, QuantizedConv2d, QuantizedConvTranspose1d, QuantizedConvTranspose2d
from .embedding import QuantizedEmbedding, QuantizedEmbeddingBag
from .linear import QuantizedLinear
from .recurrent import QuantizedGRU, QuantizedLSTM

QUANTIZED: dict[type[nn.Module], type[QuantizedModule]] = {
    cls.float_class: cls
    for cls in (
        QuantizedLinear,
        QuantizedConv1d,
        QuantizedConv2d,
        QuantizedConvTranspose1d,
        QuantizedConvTranspose2d,
        QuantizedLSTM,
        QuantizedGRU,
        QuantizedEmbedding,
        QuantizedEmbeddingBag,
    )
}
"""Float class → quantized class."""


def quantized_class(module: nn.Module) -> type[QuantizedModule] | None:
    """The class that can take this module's place: that of its type, or of the standard class whose forward it inherits
    unchanged. None for others, whose own forward would be lost, be it the class's or the module's."""
    kind = type(module)
    if kind.__module__ == "transformers.pytorch_utils" and kind.__name__ == "Conv1D":
        return QuantizedLinear
    for standard, quantized in QUANTIZED.items():
        same = ("forward", "_conv_forward", "_output_padding", "permute_hidden", "__call__")
        inherited = all(getattr(kind, n, None) is getattr(standard, n, None) for n in same)
        if issubclass(kind, standard) and inherited and not any(n in vars(module) for n in same):
            return quantized
    return None


__all__ = [
    "QUANTIZED",
    "QuantizedConv1d",
    "QuantizedConv2d",
    "QuantizedConvTranspose1d",
    "QuantizedConvTranspose2d",
    "QuantizedEmbedding",
    "QuantizedEmbeddingBag",
    "QuantizedGRU",
    "QuantizedLSTM",
    "QuantizedLinear",
    "QuantizedModule",
    "WeightScheme",
    "quantized_class",
]
