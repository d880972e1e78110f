"""A row of logits with some tokens left out, without branches on random bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MINUS_INFINITY = np.int32(np.float32(-np.inf).view(np.int32))
FEW = 8  # where under 1/8 of the tokens are left they are taken out, else the others are masked in place


@dataclass(frozen=True, slots=True)
class Row:
    """Logits to choose from.

    Attributes:
        values: [n] float32.
        ids: [n] ascending token ids of the values, or None where value i is of token i.
    """

    values: NDArray[np.float32]
    ids: NDArray[np.int64] | None

    def token(self, index: int) -> int:
        """The token of a value."""
        return index if self.ids is None else int(self.ids[index])


class Scratch:
    """Buffers of one thread, so that a step allocates nothing of the vocabulary's size."""

    __slots__ = ("flags", "masked", "row", "weights")

    def __init__(self, vocab_size: int) -> None:
        self.row = np.empty(vocab_size, dtype=np.float32)
        self.weights = np.empty(vocab_size, dtype=np.float32)
        self.masked = np.empty(vocab_size, dtype=np.float32)
        self.flags = np.empty(vocab_size, dtype=np.bool_)

    def copy(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of a row [V] that may be changed."""
        np.copyto(self.row, row)
        return self.row


def keep(values: NDArray[np.float32], ids: NDArray[np.int64]) -> Row:
    """Only these tokens, given in ascending order."""
    return Row(values[ids], ids)


def apply_bits(values: NDArray[np.float32], bits: NDArray[np.uint32], scratch: Scratch) -> Row:
    """Leave out the tokens whose bit is 0.

    Args:
        values: [V]; not changed unless they are ``scratch.row``.
        bits: [at least V / 32], token t has bit t % 32 of word t // 32.
    """
    size = len(values)
    flags = np.unpackbits(bits.view(np.uint8), count=size, bitorder="little")
    if int(np.count_nonzero(flags)) * FEW < size:
        return keep(values, np.flatnonzero(flags))
    # 1 → 0.0 and 0 → -inf, by bits: (flag - 1) has all bits set or none.
    words = scratch.masked[:size].view(np.int32)
    np.subtract(flags, np.int32(1), out=words, dtype=np.int32, casting="unsafe")
    np.bitwise_and(words, _MINUS_INFINITY, out=words)
    return Row(np.add(values, words.view(np.float32), out=scratch.row[:size]), None)
