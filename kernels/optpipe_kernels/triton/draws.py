"""``Draw`` and ``Settings``: how the tokens of rows are chosen, and that as ``sampling`` reads it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

GREEDY_BELOW = 1e-5  # a temperature under this takes the likeliest token, as the field has it


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row's token is chosen.

    Attributes:
        temperature: divides the logits; under 1e-5 the likeliest token is taken.
        top_k: keep only this many; 0 keeps all.
        top_p, min_p: as the field has them; 1 and 0 keep all.
        seed, index: of the random numbers.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """Draws as kernels read them.

    Attributes:
        floats: [R, 3] float64: temperature, top_p, how far below the peak min-p keeps values.
        integers: [R, 3] int64: top_k, 1 for the likeliest token; the seed's low 64 bits; the index.
    """

    floats: torch.Tensor
    integers: torch.Tensor


def settings(draws: Sequence[Draw], device: torch.device | str = "cpu") -> Settings:
    """The settings of a step's rows."""
    floats, integers = [], []
    for draw in draws:
        greedy = draw.temperature < GREEDY_BELOW or draw.top_k == 1
        floor = draw.temperature * math.log(draw.min_p) if draw.min_p > 0 else -math.inf
        floats.append((draw.temperature, draw.top_p, floor))
        seed = draw.seed & ((1 << 64) - 1)
        integers.append((1 if greedy else draw.top_k, seed - (seed >> 63 << 64), draw.index))
    return Settings(
        torch.tensor(floats, dtype=torch.float64, device=device).reshape(-1, 3),
        torch.tensor(integers, dtype=torch.int64, device=device).reshape(-1, 3),
    )
