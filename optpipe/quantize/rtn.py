"""Round to nearest: every weight to the closest point of its group's grid.

    symmetric, 4 bits    scale = extreme / −8, where extreme is the entry of largest magnitude, with its sign
    symmetric, 8 bits    scale = max |w| / 127: one code in 256 is not worth a negative scale
    float minimum        minimum = min w,  scale = (max w − minimum) / (2^bits − 1)

Scale and minimum are rounded to how they will be stored first, and codes are chosen against the rounded
values, so that storing loses nothing more.

Source: GGUF's Q4_0 (signed extreme) and Q4_1 (minimum).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optpipe.quantize.pack import BITS
from optpipe.weights.grid import GridInfo, QuantizedTensor

GROUPS = (-1, 32, 64, 128)
_HALF_LARGEST = 65504.0
_HALF_SMALLEST_NORMAL = 2.0**-14


def why_not(columns: int, grid: GridInfo) -> str | None:
    """The reason why a weight with ``columns`` inputs cannot lie on ``grid``, or None."""
    if grid.group != -1 and columns % grid.group:
        return f"its {columns} inputs are not divisible into groups of {grid.group}"
    if columns % (32 // grid.bits):
        return f"its {columns} inputs do not fill words of {32 // grid.bits} codes"
    return None


def round_to_nearest(weight: torch.Tensor, grid: GridInfo) -> QuantizedTensor:
    """The weight [..., N, K] on a grid fitted to each group's range."""
    scale, minimum = fit(weight, grid)
    return assign(weight, scale, minimum, grid)


def fit(weight: torch.Tensor, grid: GridInfo) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scale and minimum [..., N, K/g] that cover each group's range, rounded to their storage."""
    assert grid.bits in BITS, f"{grid.bits = } must be one of {BITS}"
    groups = grouped(weight, grid.group)
    if grid.has_minimum:
        return _fit_range(groups.amin(-1), groups.amax(-1), 2**grid.bits - 1)
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return stored(extreme.abs() / 127 if grid.bits == 8 else extreme / -(2 ** (grid.bits - 1)), None)


def _fit_range(low: torch.Tensor, high: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    minimum = low.half()
    scale, _ = stored((high - minimum.float()) / steps, minimum)
    if scale.dtype == torch.float16:
        return scale, minimum
    return (high - low) / steps, low


def assign(
    weight: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor | None, grid: GridInfo
) -> QuantizedTensor:
    """The nearest codes on a grid that is given."""
    groups = grouped(weight, grid.group)
    wide = scale.float().unsqueeze(-1)
    step = torch.where(wide == 0, 1.0, wide)  # a group of zeros: any code is right, take the middle
    if minimum is None:
        codes = (groups / step).round_().add_(2 ** (grid.bits - 1))
    else:
        codes = (groups - minimum.float().unsqueeze(-1)).div_(step).round_()
    codes = codes.clamp_(0, 2**grid.bits - 1).to(torch.uint8).flatten(-2)
    return QuantizedTensor(codes, scale, minimum, grid.bits, grid.group)


def joined(parts: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """Rows that were quantized apart, as one tensor; float32 scales where one part needs them."""
    first = parts[0]
    if len(parts) == 1:
        return first
    dtype = torch.float32 if any(part.scale.dtype == torch.float32 for part in parts) else first.scale.dtype
    minima = [part.minimum.to(dtype) for part in parts if part.minimum is not None]
    return QuantizedTensor(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scale.to(dtype) for part in parts]),
        torch.cat(minima) if minima else None,
        first.bits,
        first.group,
    )


def grouped(weight: torch.Tensor, group: int) -> torch.Tensor:
    """The weight [..., N, K] as float32 [..., N, K/g, g]."""
    width = weight.shape[-1] if group == -1 else group
    return weight.float().reshape(*weight.shape[:-1], -1, width)


def stored(scale: torch.Tensor, minimum: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Both as float16 when no scale loses precision to it and nothing is infinite, else as float32.

    A scale that is not zero must be a normal float16. A minimum only has to be finite: what rounding takes
    from it is small against any such scale.
    """
    size = scale.abs()
    fits = (size <= _HALF_LARGEST) & ((size >= _HALF_SMALLEST_NORMAL) | (size == 0))
    if minimum is not None:
        fits = fits & (minimum.abs() <= _HALF_LARGEST)
    dtype = torch.float16 if bool(fits.all()) else torch.float32
    return scale.to(dtype), None if minimum is None else minimum.to(dtype)
