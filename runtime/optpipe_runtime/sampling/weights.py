"""Weights of a row's tokens, and a choice among them by one random number.

The order is that of token ids. Sums of blocks come first, so that a choice reads one block after them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 256  # summed in float32 by lanes; sums of blocks are added in float64


class Weights:
    """What each token weighs: not negative, not all 0.

    Attributes:
        values: [n] float32.
        total: their sum.
    """

    __slots__ = ("_ends", "total", "values")

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values
        blocks = len(values) // BLOCK
        sums = np.empty(blocks + 1, dtype=np.float64)
        sums[:blocks] = np.einsum("ij->i", values[: blocks * BLOCK].reshape(blocks, BLOCK))
        sums[blocks] = values[blocks * BLOCK :].sum(dtype=np.float64)
        self._ends = sums.cumsum()
        self.total = float(self._ends[-1])

    def pick(self, uniform: float) -> int:
        """The first token at which the running sum passes ``uniform`` · total.

        Args:
            uniform: from 0 up to 1.
        """
        target = uniform * self.total
        block = int(self._ends.searchsorted(target, side="right"))
        if block == len(self._ends):  # uniform · total was rounded up to the total
            block = int(self._ends.searchsorted(self.total, side="left"))
        before = float(self._ends[block - 1]) if block else 0.0
        part = self.values[block * BLOCK : (block + 1) * BLOCK]
        running = part.cumsum(dtype=np.float64)
        place = int(running.searchsorted(target - before, side="right"))
        if place == len(part):  # float32 and float64 sums of a block differ in their last bits
            place = int(np.flatnonzero(part)[-1])
        return block * BLOCK + place
