"""Weights made of other weights when they are read: rows moved, values shifted, axes swapped."""

from __future__ import annotations

import torch

from optpipe.weights.grid import QuantizedTensor
from optpipe.weights.store import BaseWeight, LazyWeight


class PermutedRows(BaseWeight):
    """Row i is row ``order[i]`` of the base. Codes and scales move along, so a grid is kept."""

    def __init__(self, base: LazyWeight, order: torch.Tensor) -> None:
        assert order.shape == base.shape[:1], f"{order.shape = } must number the rows of {base.shape = }"
        self._base, self._order = base, order
        super().__init__(base.shape, base.dtype, base.nbytes, base.grid)

    def load(self) -> torch.Tensor:
        """The base's rows in the new order."""
        return self._base.load()[self._order]

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Only those rows of the base."""
        return self._base.rows(self._order[index])

    def blocks(self) -> QuantizedTensor:
        """The base's codes and scales in the new order."""
        return self._base.blocks().each(lambda part: part[self._order])


class ShiftedWeight(BaseWeight):
    """The base plus a constant, in float32: norms are stored as 1 + w in GGUF files of Gemma."""

    def __init__(self, base: LazyWeight, shift: float) -> None:
        self._base, self._shift = base, shift
        super().__init__(base.shape, torch.float32, base.nbytes)

    def load(self) -> torch.Tensor:
        """The shifted values."""
        return self._base.load().to(torch.float32) + self._shift

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Only those rows, shifted."""
        return self._base.rows(index).to(torch.float32) + self._shift


class TransposedWeight(BaseWeight):
    """A matrix with its axes swapped ([K, N] of a Conv1D to [N, K] of a linear). A grid does not survive."""

    def __init__(self, base: LazyWeight) -> None:
        assert len(base.shape) == 2, f"{base.shape = } must be a matrix"
        self._base = base
        super().__init__(base.shape[::-1], base.dtype, base.nbytes)

    def load(self) -> torch.Tensor:
        """The transposed values, contiguous."""
        return self._base.load().T.contiguous()

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Columns of the base."""
        return self._base.load().T[index]
