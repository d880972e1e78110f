"""Quantized weights on random grids, and what a layer over them gives in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from optpipe.dialect.quant_linear import dequantize
from optpipe.quantize.pack import pack
from optpipe_kernels.triton.packing import QuantWeight, repack

# Each kernel and the weight round once to 11 or 8 bits; the interpreter cuts bfloat16 off, instead.
BOUND = {torch.float16: 1e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Case:
    """A weight as artifacts store it, as kernels read it, and as it is."""

    stored: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
    weight: QuantWeight
    values: torch.Tensor


def case(
    rows: int, columns: int, bits: int, group: int, minimum: bool, dtype: torch.dtype, device: str = "cpu"
) -> Case:
    """A weight [rows, columns] with codes and scales from the fixed seed."""
    codes = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8)
    groups = 1 if group == -1 else columns // group
    scale = (torch.rand(rows, groups) * 0.02 + 0.002).half()
    low = (-torch.rand(rows, groups) * 0.02 * (1 << bits)).half() if minimum else None
    stored = (pack(codes, bits), scale, low)
    there = [None if part is None else part.to(device) for part in stored]
    weight = repack(*there, bits=bits, group=group, dtype=dtype)
    return Case(stored, weight, dequantize(*stored, bits, torch.float64))


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖; infinite where a value is missing."""
    distance = (actual.double().cpu() - expected).norm() / expected.norm()
    return float(distance) if bool(actual.isfinite().all()) else float("inf")
