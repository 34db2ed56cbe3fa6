"""What all quantized modules share: their buffers, and how those load, move and decode."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from .codes import WeightScheme, decode, unpack, unpack_zero_points, words
from .parts import INPUT_SCALE, INPUT_ZERO_POINT, PACKED, SCALE, SHAPE, ZERO_POINT, scheme_of, taken

# Weights decoded at once: a block that stays in the processor's cache, 4 MiB as float32.
BLOCK = 1 << 20
INPUTS = (None, "dynamic", "static")

Self = TypeVar("Self", bound="QuantizedModule")


class QuantizedModule(nn.Module):
    """Takes the place of a float module and holds each of its weights `N` as codes, in buffers named as in our files:

    - packed: `N_packed` int32 `[rows, words]`, `N_shape` int64, and if asymmetric `N_zero_point` int32, packed along
      the rows;
    - else: `N` int8 in the weight's shape, and if asymmetric `N_zero_point` int8;
    - `N_scale` `[rows, groups]` or `[1]`, floating;
    - for inputs quantized with stored scales: `input_scale` `[1]`, and if asymmetric `input_zero_point` int8 `[1]`.

    Biases, and weights that were left in floating point, are parameters without gradient. The constructor takes the
    float class's arguments, then, by keyword:

    bits, group_size, symmetric, per_tensor: see WeightScheme.
    inputs: None (float inputs), "dynamic" (int8, scales found while running) or "static" (int8, stored scale).
    inputs_symmetric: of static inputs; if not, there is a zero point.
    packed: whether codes are packed; by default if inputs are float.
    schemes: by weight, where they differ; None keeps that weight float.

    The module is empty (codes and scales are zero) until `load_state_dict` fills it. `from_parts` makes a full one.

    Outputs have the input's dtype. `.half()`, `.to(dtype)` and the like change parameters and `compute_dtype`; codes
    and scales stay as they are, so that no cast can spoil a small scale (float16 ends at 6e-8). No decoded weight
    outlives a forward. Gradients reach the input, not the weights.
    """

    float_class: ClassVar[type[nn.Module]]
    config_names: ClassVar[tuple[str, ...]]
    takes_inputs: ClassVar[bool] = False
    _buffers: dict[str, Tensor]  # type: ignore[assignment]  # none is None
    _parameters: dict[str, nn.Parameter]  # type: ignore[assignment]

    def __init__(
        self,
        *args: Any,
        bits: int = 8,
        group_size: int | None = None,
        symmetric: bool = True,
        inputs: str | None = None,
        inputs_symmetric: bool = True,
        packed: bool | None = None,
        per_tensor: bool = False,
        schemes: Mapping[str, WeightScheme | None] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **config: Any,
    ) -> None:
        packed = inputs is None if packed is None else packed
        scheme = WeightScheme(bits, group_size, symmetric, packed, per_tensor)
        like = self.float_class(*args, **config, device="meta", dtype=dtype)
        self._prepare(like, inputs)
        for name, parameter in like.named_parameters(recurse=False):
            shape = tuple(parameter.shape)
            own = (schemes or {}).get(name, scheme) if name.startswith("weight") else None
            if own is None:
                self._hold_float(name, torch.zeros(shape, dtype=parameter.dtype, device=device))
            else:
                self._hold_codes(name, self._empty(name, shape, own, device), own, shape)
        if inputs == "static":
            self._buffers[INPUT_SCALE] = torch.ones(1, device=device)
            if not inputs_symmetric:
                self._buffers[INPUT_ZERO_POINT] = torch.zeros(1, dtype=torch.int8, device=device)

    @classmethod
    def from_parts(
        cls: type[Self],
        original: nn.Module,
        parts: Mapping[str, Tensor],
        *,
        bits: int | Mapping[str, int],
        group_size: int | None = None,
        symmetric: bool | None = None,
        inputs: str | None = None,
    ) -> Self:
        """A module like `original`, which is only read, with the codes and scales in `parts`.

        parts: tensors by the names of the buffers (`weight_packed`, `weight_scale`, …), as a file has them after the
            module's name. They are used, not copied. A bias or weight that has no part is copied from `original`.
        bits: of the codes; by weight where they differ.
        group_size, symmetric: as the parts say if None, else checked against them.
        inputs: None, "dynamic" or "static". Static needs `input_scale` among the parts.

        ValueError: a part is missing, left over, or of another shape, dtype or scheme.
        """
        self = cls.__new__(cls)
        config = cls._config_of(original)
        like = cls.float_class(**config, device="meta")
        self._prepare(like, inputs, next((p.dtype for p in original.parameters()), torch.get_default_dtype()))
        rest = dict(parts)
        device = next((part.device for part in rest.values()), None)
        for name, parameter in like.named_parameters(recurse=False):
            shape = tuple(parameter.shape)
            width = bits if isinstance(bits, int) else bits.get(name, 0)
            scheme = scheme_of(name, shape, parts, width) if name.startswith("weight") else None
            if scheme is None:
                value = rest.pop(name) if name in rest else getattr(original, name)
                self._hold_float(name, value.detach().to(device, copy=True))
                continue
            if symmetric not in (None, scheme.symmetric):
                raise ValueError(f"symmetric is {symmetric}, but {name} is stored as {scheme}")
            if group_size is not None and scheme.groups(math.prod(shape[1:])) * group_size != math.prod(shape[1:]):
                raise ValueError(f"group_size is {group_size}, but {name} is stored as {scheme}")
            expected = self._empty(name, shape, scheme, "meta")
            self._hold_codes(name, {key: taken(rest, key, empty) for key, empty in expected.items()}, scheme, shape)
        if inputs == "static":
            self._buffers[INPUT_SCALE] = taken(rest, INPUT_SCALE, torch.empty(1)).reshape(1)
            if INPUT_ZERO_POINT in rest:
                empty = torch.empty(1, dtype=torch.int8)
                self._buffers[INPUT_ZERO_POINT] = taken(rest, INPUT_ZERO_POINT, empty).reshape(1)
        if rest:
            raise ValueError(f"{cls.__name__} has no place for {', '.join(rest)}")
        self.train(original.training)
        return self

    @classmethod
    def _config_of(cls, original: nn.Module) -> dict[str, Any]:
        """The arguments that would make `original`."""
        config = {name: getattr(original, name) for name in cls.config_names}
        if "bias" in config:
            config["bias"] = config["bias"] is not None and config["bias"] is not False
        return config

    def _prepare(self, like: nn.Module, inputs: str | None, dtype: torch.dtype | None = None) -> None:
        """Takes over the configuration of `like`, a float module without storage."""
        nn.Module.__init__(self)
        if inputs not in INPUTS or (inputs is not None and not self.takes_inputs):
            raise ValueError(f"{type(self).__name__} with inputs={inputs!r}")
        self.config = self._config_of(like)
        bias = getattr(like, "bias", False)
        for name, value in self.config.items():
            if name != "bias" or isinstance(bias, bool):
                setattr(self, name, value)
        if bias is None:
            self.register_parameter("bias", None)
        self._description = like.extra_repr()
        self.inputs = inputs
        self.schemes: dict[str, WeightScheme] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._compute_dtype = dtype or next(like.parameters()).dtype

    def _empty(
        self, name: str, shape: tuple[int, ...], scheme: WeightScheme, device: torch.device | str | None
    ) -> dict[str, Tensor]:
        """Zeroed buffers of one weight."""
        rows, columns = shape[0], math.prod(shape[1:])
        groups = scheme.groups(columns)
        scale = [1] if scheme.per_tensor else [rows, groups]
        buffers = {name + SCALE: torch.zeros(scale, dtype=self._compute_dtype, device=device)}
        if not scheme.packed:
            buffers[name] = torch.zeros(shape, dtype=torch.int8, device=device)
            if not scheme.symmetric:
                buffers[name + ZERO_POINT] = torch.zeros(scale, dtype=torch.int8, device=device)
            return buffers
        size = [rows, words(columns, scheme.bits)]
        buffers[name + PACKED] = torch.zeros(size, dtype=torch.int32, device=device)
        buffers[name + SHAPE] = torch.tensor(shape, dtype=torch.int64, device=device)
        if not scheme.symmetric:
            size = [words(1 if scheme.per_tensor else rows, scheme.bits), groups]
            buffers[name + ZERO_POINT] = torch.zeros(size, dtype=torch.int32, device=device)
        return buffers

    def _hold_codes(
        self, name: str, buffers: Mapping[str, Tensor], scheme: WeightScheme, shape: tuple[int, ...]
    ) -> None:
        stored = buffers.get(name + SHAPE)
        if stored is not None and not stored.is_meta and tuple(stored.tolist()) != shape:
            raise ValueError(f"{name}{SHAPE} is {stored.tolist()}, not {list(shape)}")
        # not register_buffer, which refuses "weight", because that is a property too
        self._buffers.update(buffers)
        self.schemes[name] = scheme
        self._shapes[name] = shape

    def _hold_float(self, name: str, value: Tensor) -> None:
        if name == "weight":
            raise ValueError(f"{type(self).__name__} without codes")
        self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    @property
    def compute_dtype(self) -> torch.dtype:
        """What `weight` decodes to; the dtype of embeddings' outputs."""
        return self._compute_dtype

    # Decoding

    def _codes(self, name: str, start: int, stop: int) -> Tensor:
        """int8 `[stop - start, columns]`."""
        scheme = self.schemes[name]
        if scheme.packed:
            columns = math.prod(self._shapes[name][1:])
            return unpack(self._buffers[name + PACKED][start:stop], scheme.bits, columns)
        return self._buffers[name][start:stop].flatten(1)

    def _zero_points(self, name: str, start: int, stop: int) -> Tensor | None:
        """int8, shaped like these rows' scales; `start` a multiple of 32."""
        scheme = self.schemes[name]
        if scheme.symmetric:
            return None
        zero_points = self._buffers[name + ZERO_POINT]
        if scheme.per_tensor:
            return unpack_zero_points(zero_points, scheme.bits, 1).view(1) if scheme.packed else zero_points
        if not scheme.packed:
            return zero_points[start:stop]
        rows = slice(start * scheme.bits // 32, words(stop, scheme.bits))
        return unpack_zero_points(zero_points[rows], scheme.bits, stop - start)

    def _scales(self, name: str, start: int, stop: int) -> Tensor:
        scale = self._buffers[name + SCALE]
        return scale if self.schemes[name].per_tensor else scale[start:stop]

    def _decoded(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows of a weight, float32 `[rows, columns]`; `start` a multiple of 32."""
        stop = self._shapes[name][0] if stop is None else stop
        codes = self._codes(name, start, stop)
        return decode(codes, self._scales(name, start, stop), self._zero_points(name, start, stop))

    def _weight(self, name: str, dtype: torch.dtype) -> Tensor:
        """A whole weight in its own shape, decoded if it is quantized."""
        if name not in self.schemes:
            return self._parameters[name].to(dtype)
        shape, blocks = self._shapes[name], self._row_blocks(name)
        if len(blocks) == 1:
            return self._decoded(name).to(dtype).view(shape)
        weight = torch.empty(shape, dtype=dtype, device=self._buffers[name + SCALE].device)
        for start, stop in blocks:
            weight[start:stop] = self._decoded(name, start, stop).view(-1, *shape[1:])
        return weight

    def _row_blocks(self, name: str) -> list[tuple[int, int]]:
        """Ranges of rows to decode one after the other. One when compiling, where each would be compiled for itself."""
        rows, columns = self._shapes[name][0], math.prod(self._shapes[name][1:])
        step = rows if torch.compiler.is_compiling() else max(32, BLOCK // columns // 32 * 32)
        return [(start, min(start + step, rows)) for start in range(0, rows, step)]

    @torch.no_grad()
    def dequantize(self) -> Tensor | dict[str, Tensor]:
        """The weight in float32; of a recurrent module, a dict of its quantized weights."""
        weights = {name: self._weight(name, torch.float32) for name in self.schemes}
        return weights["weight"] if list(weights) == ["weight"] else weights

    @torch.no_grad()
    def to_float(self) -> nn.Module:
        """The standard module with the decoded weights, float32, in the same training mode."""
        module = self.float_class(**self.config, device="meta")
        state = {name: self._weight(name, torch.float32) for name in self.schemes}
        for name, parameter in self._parameters.items():
            if parameter is not None:
                state[name] = parameter.detach().to(torch.float32, copy=True)
        module.load_state_dict(state, assign=True)
        return module.train(self.training)

    # torch's hooks

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = {id(buffer) for buffer in self._buffers.values()}

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if id(tensor) in kept and moved.dtype != tensor.dtype else moved

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        self._compute_dtype = fn(torch.empty(0, dtype=self._compute_dtype)).dtype
        return self

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        for name, own in list(self._buffers.items()):
            given = state_dict.get(prefix + name)
            if not isinstance(given, Tensor) or own is None:
                continue
            if given.is_floating_point() and own.is_floating_point():
                self._buffers[name] = own.to(given.dtype)  # scales stay as exact as they were stored
            elif given.dtype != own.dtype:
                errors.append(f"{prefix}{name} holds {own.dtype}, not {given.dtype}")
            elif name.endswith(SHAPE) and not given.is_meta:
                shape = list(self._shapes[name.removesuffix(SHAPE)])
                if given.tolist() != shape:
                    errors.append(f"{prefix}{name} is {given.tolist()}, not {shape}")
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    def extra_repr(self) -> str:
        found: dict[str, list[str]] = {}
        for name, scheme in self.schemes.items():
            found.setdefault(str(scheme), []).append(name)
        if len(found) == 1:
            schemes = next(iter(found))
        else:
            schemes = "; ".join(f"{', '.join(names)}: {scheme}" for scheme, names in found.items())
        inputs = "" if self.inputs is None else f", inputs={self.inputs}"
        return ", ".join(filter(None, [self._description, schemes])) + inputs
