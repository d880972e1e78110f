"""The largest values of a row, without sorting the row.

A row of n values is folded into C columns: column c holds values c, c + C, c + 2C, …. The k-th largest of the
columns' maxima is a lower bound of the k-th largest value, so that the k largest lie in the few columns whose
maximum reaches it. One pass over the row finds the maxima; it is the only one that reads the row from memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import KernelError, RequestError

from .weights import Weights

DEPTH = 64  # values a column; the pass keeps n / 64 maxima in the first-level cache
LEAST = np.finfo(np.float32).min  # the least value over -inf
UNFOLDED = 2048  # rows up to this size are their own maxima


class Folded:
    """A row and the maxima of its columns.

    Attributes:
        values: [n] float32.
        peak: the largest of them.

    Raises:
        KernelError: a value is NaN or +inf, or the row was all -inf as it came from the model.
    """

    def __init__(self, values: NDArray[np.float32]) -> None:
        size = len(values)
        self.values = values
        self._columns = size if size <= UNFOLDED else size // DEPTH
        self._depth = size // self._columns
        body = values[: self._depth * self._columns].reshape(self._depth, self._columns)
        self._maxima: NDArray[np.float32] = body.max(axis=0)
        rest = values[body.size :]
        np.maximum(self._maxima[: len(rest)], rest, out=self._maxima[: len(rest)])
        self.peak = checked_peak(float(self._maxima.max()))

    def shortlist(self, count: int) -> NDArray[np.int64]:
        """Ascending ids of at least the ``count`` largest values over -inf and all that equal them."""
        if self._depth == 1 or 2 * count > self._columns:
            return self._scan(count)
        bound = np.partition(self._maxima, self._columns - count)[self._columns - count]
        bound = max(bound, LEAST)
        columns = np.flatnonzero(self._maxima >= bound)
        body = self.values[: self._depth * self._columns].reshape(self._depth, self._columns)
        deep, place = (body[:, columns] >= bound).nonzero()  # by depth, so that ids ascend
        ids: NDArray[np.int64] = deep * self._columns + columns[place]
        rest = (self.values[body.size :] >= bound).nonzero()[0]
        return np.concatenate([ids, rest + body.size]) if len(rest) else ids

    def top(self, count: int) -> NDArray[np.int64]:
        """Ids of the ``count`` largest values over -inf, largest first, lower ids first among equals."""
        if count == 0:
            return np.empty(0, dtype=np.int64)
        ids = self.shortlist(count)
        return ids[(-self.values[ids]).argsort(kind="stable")[:count]]

    def weigh(self, temperature: float, out: NDArray[np.float32]) -> Weights:
        """exp((value - peak) / temperature) of every value, in ``out`` [at least n]."""
        return Weights(scaled(self.values, self.peak, temperature, out[: len(self.values)]))

    def _scan(self, count: int) -> NDArray[np.int64]:
        place = max(0, len(self.values) - count)
        bound = np.partition(self.values, place)[place]
        return np.flatnonzero(self.values >= max(bound, LEAST))


def scaled(
    values: NDArray[np.float32], peak: float, temperature: float, out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """exp((value - peak) / temperature) in float32, the same bits for the same value wherever it stands."""
    np.subtract(values, np.float32(peak), out=out)
    if temperature != 1:
        np.multiply(out, np.float32(1 / temperature), out=out)
    return np.exp(out, out=out)


def checked_peak(peak: float) -> float:
    """The largest value of a row, when it is one that a token can be chosen by.

    Raises:
        KernelError: it is NaN or +inf: the model failed.
        RequestError: it is -inf: the request's rules leave no token.
    """
    if peak == -np.inf:
        raise RequestError("No token may come next: the rules of the request exclude all.")
    if not np.isfinite(peak):
        raise KernelError("The model's logits are not numbers, so no token can be chosen.")
    return peak
