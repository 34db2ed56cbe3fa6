"""What came of a quantization."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .validation import ValidationResult

MEGABYTE = 1024 * 1024


@dataclass
class QuantizationInfo:
    """Facts of a run. Sizes are of tensors, in MiB; ratios in dB are signal to quantization noise."""

    selected_layers: list[str] = field(default_factory=list)
    """Modules (or weights, of a file) that are quantized or cast."""
    skipped_layers: list[str] = field(default_factory=list)
    """Modules with a weight that stay as they are."""
    skip_reasons: dict[str, str] = field(default_factory=dict)
    """Why, by the name of every tensor or module that stays."""
    changes: dict[str, str] = field(default_factory=dict)
    """What was changed from what was asked for, by weight: group sizes that do not divide."""
    calibration_samples_used: int = 0
    bits: int = 8
    dtype: torch.dtype | None = None
    """torch.int8, torch.float16, or torch.uint8 where two 4-bit codes share a byte of a word."""
    symmetric: bool = True
    scheme: str = "symmetric"
    group_size: int | None = None
    dynamic: bool = False
    sqnr_db: float | None = None
    """10·log10(Σx² / Σ(x−x̂)²) over all quantized weights; 999 where nothing was lost, None where nothing was coded."""
    layer_sqnr_db: dict[str, float] = field(default_factory=dict)
    max_error: float | None = None
    """max |x−x̂| over all quantized weights; known after validation."""
    output_error: float | None = None
    """‖y−ŷ‖ / ‖y‖ on sample inputs; known after validation with samples."""
    original_size_mb: float = 0.0
    quantized_size_mb: float = 0.0
    compression_ratio: float = 1.0
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    device: str = ""
    """What computed."""
    seconds: float = 0.0


@dataclass
class QuantizationResult:
    """A quantized model with its facts. Errors are raised, never returned: where there is a result, it is good."""

    model: Any
    """An `nn.Module` for a module; a dict of tensors for a state dict or a file; None if it went to a file."""
    info: QuantizationInfo
    path: Path | None = None
    """The file or directory, if it was written by `quantize(…, output=…)`."""
    metadata: dict[str, str] = field(default_factory=dict, repr=False)
    order: list[str] = field(default_factory=list, repr=False)
    errors: list[str] = field(default_factory=list)

    @property
    def success(self) -> bool:
        """True: a failure is an exception."""
        return not self.errors

    @property
    def warnings(self) -> list[str]:
        return self.info.warnings

    def __bool__(self) -> bool:
        return self.success

    def save(self, path: str | Path, *, overwrite: bool = True) -> Path:
        """Writes a `.safetensors`, `.pt` or `.pth` file with the codes, scales and recipe; see `save_model`."""
        from .io import save_model

        return save_model(self, path, overwrite=overwrite)

    def validate(self, original: Any, on_failure: str = "error", **options: Any) -> ValidationResult:
        """Compares with the original; see `validate_quantization`. Fills in `info.max_error` and `info.output_error`."""
        from .validation import validate_quantization

        found = validate_quantization(original, self, on_failure=on_failure, **options)
        self.info.max_error, self.info.output_error = found.max_error, found.output_error
        return found
