"""Checkpoints in compressed-tensors form: packed or plain integer codes with scales keep their grid.

    X.weight_packed      int32 [N, ceil(K*bits/32)]   offset-binary codes, little end first
    X.weight             int8  [N, K]                 (int-quantized, instead of the above)
    X.weight_scale             [N, K/g], [N, 1] or [1]
    X.weight_zero_point        [N, K/g] int8, or int32 packed along N
    X.weight_shape       int64 [2]

value = (code - zero_point) * scale, which is code * scale + minimum with minimum = -zero_point * scale.

Source: compressed-tensors, `compressors/pack_quantized`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from optpipe.errors import ModelError
from optpipe.weights.grid import GridInfo, QuantizedTensor
from optpipe.weights.store import BaseWeight, LazyWeight

_PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
_READ = ("pack-quantized", "int-quantized", "naive-quantized", "mixed-precision")
_BITS = (4, 8)
_HINT = "use the model's unquantized checkpoint and let optpipe quantize it"


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a compressed-tensors config says about integer weights."""

    bits: int  # of codes stored one a byte; 8 when groups differ
    symmetric: bool  # stored zero points, if any, mean nothing


def check_quantization(config: Mapping[str, Any]) -> Scheme | None:
    """Whether and how a model's ``quantization_config`` can be read; None when it is not quantized.

    Raises:
        ModelError: it is quantized in a way that is not read; the method is named.
    """
    quantization = config.get("quantization_config") or config.get("compression_config")
    if not quantization:
        return None
    if not isinstance(quantization, dict):
        raise ModelError("The model's 'quantization_config' is not an object.")
    method = str(quantization.get("quant_method", "of an unnamed method"))
    if method != "compressed-tensors":
        raise ModelError(
            f"The checkpoint is quantized with {method.upper()[:40]}, which is not read; "
            "compressed-tensors integer checkpoints are.",
            hint=_HINT,
        )
    form = str(quantization.get("format"))
    if form not in _READ:
        raise ModelError(
            f"The checkpoint is in the compressed-tensors format '{form[:40]}', which is not read.",
            hint=_HINT,
        )
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ModelError("The compressed-tensors config of the checkpoint has no 'config_groups'.")
    schemes = [_group_scheme(name, group) for name, group in groups.items()]
    bits = {scheme.bits for scheme in schemes}
    return Scheme(bits.pop() if len(bits) == 1 else 8, all(scheme.symmetric for scheme in schemes))


def _group_scheme(name: str, group: Any) -> Scheme:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise ModelError(
            f"The compressed-tensors group '{name[:80]}' does not say how weights are quantized."
        )
    bits, kind, strategy = weights.get("num_bits"), weights.get("type", "int"), weights.get("strategy")
    if kind != "int" or bits not in _BITS:
        label = "FP8" if (kind, bits) == ("float", 8) else f"{bits}-bit {kind}"
        raise ModelError(
            f"The checkpoint has {label} weights (compressed-tensors), which are not read.", hint=_HINT
        )
    if strategy not in (None, "tensor", "channel", "group"):
        raise ModelError(
            f"The checkpoint has one scale a {strategy} of its weights, which is not read.", hint=_HINT
        )
    return Scheme(int(bits), bool(weights.get("symmetric", True)))


class PackedWeight(BaseWeight):
    """A matrix on the integer grid that its checkpoint gives it."""

    def __init__(self, name: str, parts: Mapping[str, LazyWeight], bits: int) -> None:
        self._name, self._parts = name, dict(parts)
        self._codes = self._parts.get("weight_packed") or self._parts["weight"]
        shape = self._full_shape()
        self._bits = self._packed_bits(shape) if "weight_packed" in self._parts else bits
        self._groups = self._group_count(shape)
        self._group = -1 if self._groups == 1 else shape[-1] // self._groups
        nbytes = sum(part.nbytes for part in self._parts.values())
        grid = GridInfo(self._bits, self._group, "weight_zero_point" in self._parts)
        super().__init__(shape, torch.float32, nbytes, grid)

    def load(self) -> torch.Tensor:
        """The values, dequantized."""
        return self.blocks().dequantize()

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Only those rows, dequantized."""
        scale, minimum = self._scale_and_minimum()
        codes = self._unsigned(self._codes.rows(index))
        minimum = None if minimum is None else minimum[index]
        return QuantizedTensor(codes, scale[index], minimum, self._bits, self._group).dequantize()

    def blocks(self) -> QuantizedTensor:
        """The checkpoint's own codes and grid."""
        scale, minimum = self._scale_and_minimum()
        return QuantizedTensor(self._unsigned(self._codes.load()), scale, minimum, self._bits, self._group)

    def _unsigned(self, codes: torch.Tensor) -> torch.Tensor:
        """Stored codes, packed or signed, as u8 [rows, K] in [0, 2^bits)."""
        if codes.dtype == torch.int32:
            return unpack(codes, self._bits, self.shape[-1])
        unsigned = codes.to(torch.int16) + (1 << (self._bits - 1))
        if unsigned.numel() and (int(unsigned.min()) < 0 or int(unsigned.max()) >= 1 << self._bits):
            raise ModelError(f"The codes of '{self._name}' do not fit into {self._bits} bits.")
        return unsigned.to(torch.uint8)

    def _scale_and_minimum(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[N, groups] each; the minimum in float32, where the product is exact for half-precision scales."""
        rows = self.shape[0]
        scale = self._parts["weight_scale"].load().reshape(-1, self._groups).expand(rows, self._groups)
        if "weight_zero_point" not in self._parts:
            return scale, None
        zero = self._parts["weight_zero_point"].load()
        half = 1 << (self._bits - 1)
        if zero.dtype == torch.int32:  # packed along the rows, offset-binary as the codes are
            unsigned = unpack(zero.T.contiguous(), self._bits, rows).T.to(torch.float32)
        else:
            unsigned = (zero.to(torch.float32) + half).reshape(-1, self._groups).expand(rows, self._groups)
        return scale, -unsigned * scale.to(torch.float32)

    def _full_shape(self) -> tuple[int, ...]:
        if "weight_packed" not in self._parts:
            return self._codes.shape
        if "weight_shape" not in self._parts:
            raise ModelError(
                f"The packed tensor '{self._name}_packed' comes without its '{self._name}_shape'."
            )
        shape = tuple(int(number) for number in self._parts["weight_shape"].load().flatten())
        if len(shape) != 2 or min(shape) < 1 or shape[0] != self._codes.shape[0]:
            raise ModelError(
                f"The packed tensor '{self._name}' of {self._codes.shape} says its shape is {shape}."
            )
        return shape

    def _packed_bits(self, shape: tuple[int, ...]) -> int:
        """The width that makes K columns fill the packed words."""
        words, columns = self._codes.shape[-1], shape[-1]
        fitting = [bits for bits in _BITS if -(-columns * bits // 32) == words]
        if self._codes.dtype != torch.int32 or len(fitting) != 1:
            raise ModelError(
                f"The packed tensor '{self._name}' has {words} words a row for {columns} columns."
            )
        return fitting[0]

    def _group_count(self, shape: tuple[int, ...]) -> int:
        if "weight_g_idx" in self._parts:
            raise ModelError(
                f"The columns of '{self._name}' are reordered (g_idx), which is not read.", hint=_HINT
            )
        if "weight_scale" not in self._parts:
            raise ModelError(f"The quantized tensor '{self._name}' comes without its scale.")
        scale, (rows, columns) = self._parts["weight_scale"], shape
        groups = scale.shape[-1] if len(scale.shape) == 2 else 1
        per_row = len(scale.shape) == 2 and scale.shape[0] == rows
        whole = scale.shape in ((1,), (), (rows,), (1, 1))
        if not (per_row or whole) or groups < 1 or columns % groups or not scale.dtype.is_floating_point:
            raise ModelError(
                f"The scale of '{self._name}' has the shape {scale.shape}, for weights of {shape}."
            )
        return groups


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """int32 [N, words] to u8 [N, count]: element k is at bits (k % (32/bits))*bits of word k // (32/bits)."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes = (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return codes.flatten(-2)[..., :count].to(torch.uint8)


def join_packed(found: Mapping[str, LazyWeight], scheme: Scheme) -> dict[str, LazyWeight]:
    """Put the parts of each quantized matrix together under the name of its weight.

    Raises:
        ModelError: a part is missing or the parts do not fit.
    """
    homes: dict[str, dict[str, LazyWeight]] = {}
    rest: dict[str, LazyWeight] = {}
    for name, weight in found.items():
        home, _, part = name.rpartition(".")
        if part in _PARTS:
            homes.setdefault(home, {})[part] = weight
        else:
            rest[name] = weight
    for home, parts in homes.items():
        name = f"{home}.weight"
        if "weight_packed" not in parts:
            if name not in rest or rest[name].dtype != torch.int8:
                raise ModelError(f"The checkpoint has '{home}.{min(parts)}' and no codes that belong to it.")
            parts["weight"] = rest[name]
        if scheme.symmetric:
            parts.pop("weight_zero_point", None)
        rest[name] = PackedWeight(name, parts, scheme.bits)
    return rest
