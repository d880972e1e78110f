"""Weights made of other weights when they are read: rows moved, values shifted, axes swapped."""

from __future__ import annotations

import torch

from optpipe.weights.grid import GridInfo, QuantizedTensor
from optpipe.weights.store import LazyWeight, no_grid


class PermutedRows:
    """Row i is row ``order[i]`` of the base. Codes and scales move along, so a grid is kept."""

    def __init__(self, base: LazyWeight, order: torch.Tensor) -> None:
        assert order.shape == base.shape[:1], f"{order.shape = } must number the rows of {base.shape = }"
        self._base, self._order = base, order

    @property
    def shape(self) -> tuple[int, ...]:
        return self._base.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._base.dtype

    @property
    def nbytes(self) -> int:
        return self._base.nbytes

    @property
    def grid(self) -> GridInfo | None:
        return self._base.grid

    def load(self) -> torch.Tensor:
        return self._base.load()[self._order]

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        return self._base.rows(self._order[index])

    def blocks(self) -> QuantizedTensor:
        return self._base.blocks().each(lambda part: part[self._order])


class ShiftedWeight:
    """The base plus a constant, in float32: norms are stored as 1 + w in GGUF files of Gemma."""

    dtype = torch.float32
    grid = None

    def __init__(self, base: LazyWeight, shift: float) -> None:
        self._base, self._shift = base, shift

    @property
    def shape(self) -> tuple[int, ...]:
        return self._base.shape

    @property
    def nbytes(self) -> int:
        return self._base.nbytes

    def load(self) -> torch.Tensor:
        return self._base.load().to(torch.float32) + self._shift

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        return self._base.rows(index).to(torch.float32) + self._shift

    def blocks(self) -> QuantizedTensor:
        raise no_grid(self)


class TransposedWeight:
    """A matrix with its axes swapped ([K, N] of a Conv1D to [N, K] of a linear). A grid does not survive."""

    grid = None

    def __init__(self, base: LazyWeight) -> None:
        assert len(base.shape) == 2, f"{base.shape = } must be a matrix"
        self._base = base

    @property
    def shape(self) -> tuple[int, ...]:
        return self._base.shape[::-1]

    @property
    def dtype(self) -> torch.dtype:
        return self._base.dtype

    @property
    def nbytes(self) -> int:
        return self._base.nbytes

    def load(self) -> torch.Tensor:
        return self._base.load().T.contiguous()

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        return self._base.load().T[index]

    def blocks(self) -> QuantizedTensor:
        raise no_grid(self)
