"""What came of a quantization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import Options

if TYPE_CHECKING:
    import torch

    from .validation import ValidationResult

MEGABYTE = 1024 * 1024


@dataclass
class QuantizationInfo:
    """Facts of a run. Sizes are of tensors, in MiB; ratios in dB are signal to quantization noise."""

    selected_layers: list[str] = field(default_factory=list)
    """Modules of which a tensor is quantized or cast; "" is the model itself. Those that share a weight are all named."""
    skipped_layers: list[str] = field(default_factory=list)
    """Modules with a weight that stays as it is."""
    skip_reasons: dict[str, str] = field(default_factory=dict)
    """Why, by the name of every tensor that stays."""
    changes: dict[str, str] = field(default_factory=dict)
    """What was changed from what was asked for, by weight: group sizes that do not divide."""
    calibration_samples_used: int = 0
    """Samples that ran through the model to find scales of inputs."""
    bits: int = 8
    """As asked for; `overrides` may differ."""
    dtype: torch.dtype | None = None
    """torch.int8, torch.float16, or torch.uint8 where two 4-bit codes share a byte of a word; None without torch."""
    symmetric: bool = True
    scheme: str = "symmetric"
    group_size: int | None = None
    """As asked for, or 128 for 4 bits; `changes` says which layers got others. None: one scale a channel or tensor."""
    dynamic: bool = False
    """Whether inputs are quantized with scales found while running."""
    sqnr_db: float | None = None
    """10·log10(Σx² / Σ(x−x̂)²) over all quantized weights; 999 where nothing was lost, None where nothing was coded."""
    layer_sqnr_db: dict[str, float] = field(default_factory=dict)
    """The same by weight."""
    max_error: float | None = None
    """max |x−x̂| over all quantized weights; known after validation."""
    output_error: float | None = None
    """‖y−ŷ‖ / ‖y‖ on sample inputs; known after validation with samples."""
    original_size_mb: float = 0.0
    quantized_size_mb: float = 0.0
    compression_ratio: float = 1.0
    """The first over the second."""
    warnings: list[str] = field(default_factory=list)
    """What to look at."""
    notes: list[str] = field(default_factory=list)
    """What other programs that load the file refuse, and what was changed."""
    device: str = ""
    """What computed."""
    seconds: float = 0.0
    """That the engine took."""


def info_of(
    options: Options, report: Mapping[str, Any], tied: Mapping[str, str] | None = None,
    reasons: Mapping[str, str] | None = None, samples: int = 0,
) -> QuantizationInfo:
    """The facts in the engine's report. tied: other names of tensors; reasons: better ones why tensors stay."""
    aliases: dict[str, list[str]] = {}
    for other, name in (tied or {}).items():
        aliases.setdefault(name, []).append(other)
    entries = [e | {"name": name} for e in report["tensors"] for name in (e["name"], *aliases.get(e["name"], ()))]
    done = [e for e in entries if e["action"] != "kept"]
    kept = {e["name"]: options.spoken(e.get("reason") or "kept") for e in entries if e["action"] == "kept"}
    kept |= {other: f"the same as {name}" for other, name in (tied or {}).items() if other in kept}
    kept |= {name: reason for name, reason in (reasons or {}).items() if name in kept}
    warnings = [options.spoken(w) for w in report["warnings"] if ": SQNR " not in w]  # ours name the user's threshold
    notes = [options.spoken(n) for n in report["notes"]]
    missed = [n for n in notes if n.endswith("matches no layer")]
    warnings += [n for n in missed if not _matched(options, n, tied or {})]
    before, after = report["bytes_before"], report["bytes_after"]
    return QuantizationInfo(
        selected_layers=_modules(e["name"] for e in done),
        skipped_layers=_modules(name for name in kept if "weight" in name.removeprefix(_owner(name))),
        skip_reasons=kept,
        changes={e["name"]: options.spoken(e["reason"]) for e in done if e.get("reason")},
        calibration_samples_used=samples,
        bits=options.bits,
        dtype=_dtype(options.bits),
        symmetric=options.scheme == "symmetric",
        scheme=options.scheme,
        group_size=options.group_size or (128 if options.bits == 4 else None),
        dynamic=options.dynamic,
        sqnr_db=report.get("sqnr_db"),
        layer_sqnr_db={e["name"]: e["sqnr_db"] for e in report["tensors"] if e.get("sqnr_db") is not None},
        original_size_mb=before / MEGABYTE,
        quantized_size_mb=after / MEGABYTE,
        compression_ratio=before / after if after else 1.0,
        warnings=warnings,
        notes=[n for n in notes if n not in missed],
        device=report["device"],
        seconds=report["seconds"],
    )


def _matched(options: Options, note: str, tied: Mapping[str, str]) -> bool:
    """Whether a pattern without a match is that of another name of a weight."""
    patterns = [p for p in (*options.include, *options.exclude, *options.override_patterns) if f"'{p.word}'" in note]
    return any(p.matches(other) for p in patterns for other in tied)


def _dtype(bits: int) -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        return None
    return {8: torch.int8, 4: torch.uint8, 16: torch.float16}[bits]


def _owner(name: str) -> str:
    """The module that has a tensor; of a parametrized weight, the module that computes with it."""
    owner, found, _ = name.partition(".parametrizations.")
    return owner if found else name.rpartition(".")[0]


def _modules(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(_owner, names)))


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
