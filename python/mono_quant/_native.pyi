"""The engine. JSON texts are those of `monoquant --json`."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, final

from ._tensors import Source

__all__ = [
    "Observer", "Plan", "calibration_json", "compare_models", "convert", "dequantize", "devices", "inspect_model", "load", "main",
    "quantize_model", "read_calibration", "save", "version", "write",
]  # fmt: skip

@final
class Plan:
    """What will be done, with the tensors that it makes."""

    @property
    def outputs(self) -> list[tuple[str, str, list[int]]]:
        """Name, torch dtype and shape of every output tensor, in order."""
    @property
    def work(self) -> int:
        """Bytes of input that a run goes through."""
    @property
    def rows(self) -> str:
        """One line a tensor or layer, as JSON."""
    @property
    def notes(self) -> list[str]: ...
    @property
    def metadata(self) -> dict[str, str]:
        """What goes into the header of a file."""
    @property
    def tied(self) -> dict[str, str]:
        """Other names of weights, and the names that they mean."""
    @property
    def input_metadata(self) -> dict[str, str]:
        """The metadata of the input."""
    @property
    def config(self) -> str | None:
        """The new config.json, as JSON."""
    def run(
        self, places: Sequence[tuple[int, int, object]], device: str, progress: Callable[[int], object] | None = None
    ) -> str:
        """Computes into memory at these addresses (address, bytes, owner), one an output; returns the report as JSON."""

@final
class Observer:
    """Finds the range of what it is shown."""

    def __new__(cls, kind: str, value: float | None = None, axis: int | None = None) -> Observer:
        """kind: minmax, moving_average, histogram or percentile; value: its averaging constant, bins or percentile."""
    def observe(self, address: int, shape: Sequence[int], owner: object) -> None:
        """Takes in a contiguous float32 tensor on the CPU."""
    def ranges(self) -> list[tuple[float, float]] | None:
        """Low and high of each channel, or of all; None before any data."""
    def qparams(
        self, bits: int = 8, symmetric: bool = False, signed: bool = True, reduce_range: bool = False
    ) -> tuple[list[float], list[int], int, int]:
        """Scales, zero points, smallest and largest code."""
    @property
    def facts(self) -> str:
        """What was seen, as JSON."""
    @property
    def state(self) -> str:
        """Everything, as JSON."""
    @staticmethod
    def from_state(state: str) -> Observer:
        """An observer from its state."""

def quantize_model(source: Source, options: Sequence[str], kinds: Mapping[str, str] | None = None) -> Plan:
    """Plans a quantization by the options of the command line. kinds: layer types of a module's weights by name."""

def convert(source: Source, formats: Sequence[str]) -> Plan:
    """Plans to take quantized layers into another layout."""

def dequantize(source: Source, dtype: str | None = None) -> Plan:
    """Plans the way back to floats; dtype is torch's name."""

def load(source: Source) -> Plan:
    """Plans to read every tensor as it is."""

def save(source: Source, path: str | PathLike[str], metadata: Mapping[str, str], force: bool) -> None:
    """Writes tensors to a file of the format that its name says."""

def compare_models(a: Source, b: Source) -> str:
    """SQNR, largest error and size, layer by layer, as JSON; the first model is the signal."""

def inspect_model(source: Source) -> str:
    """Layers, schemes, sizes, as JSON."""

def devices(device: str) -> str:
    """What a device choice opens, in words."""

def main(arguments: Sequence[str | PathLike[str]]) -> int:
    """The command line; returns the exit code."""

def write(arguments: Sequence[str | PathLike[str]], progress: Callable[[int, int], object]) -> str:
    """Runs a command line that writes a checkpoint, streamed; returns the report as JSON."""

def version() -> str:
    """The version of the engine."""

def calibration_json(symmetric: bool, layers: Mapping[str, Observer]) -> str:
    """The text of a file of statistics, for --calibration."""

def read_calibration(path: str | PathLike[str]) -> tuple[bool, dict[str, Observer]]:
    """Whether codes are symmetric, and the observers by module, of a file of statistics."""
