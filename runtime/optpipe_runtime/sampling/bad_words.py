"""Texts that may not come: the token that would complete one is masked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

TokenWords = tuple[tuple[int, ...], ...]


def encode_bad_words(words: Iterable[str], encode: Callable[[str], Sequence[int]]) -> TokenWords:
    """The token sequences of bad words, as a text begins with them and as they follow a space.

    The spelling behind a space counts when it differs in its first token and is as long, as the field has it.

    Args:
        encode: text to token ids, without special tokens.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        plain = tuple(encode(word.lstrip()))
        spaced = tuple(encode(" " + word.lstrip()))
        if plain:
            found[plain] = None
        if spaced and plain and spaced[0] != plain[0] and len(spaced) == len(plain):
            found[spaced] = None
    return tuple(found)


class BadWords:
    """Watches the output of one sequence for the beginnings of bad words."""

    def __init__(self, words: TokenWords) -> None:
        self._last: dict[tuple[int, ...], list[int]] = {}
        for word in words:
            self._last.setdefault(word[:-1], []).append(word[-1])
        self._lengths = sorted({len(prefix) for prefix in self._last})
        self._tail: list[int] = []  # of the output, as long as the longest beginning

    def advance(self, token: int) -> None:
        """Note an output token."""
        self._tail.append(token)
        del self._tail[: max(0, len(self._tail) - self._lengths[-1])]

    def last(self) -> list[int]:
        """Every token that would complete a bad word."""
        found = []
        for length in self._lengths:
            if length <= len(self._tail):
                found += self._last.get(tuple(self._tail[len(self._tail) - length :]), [])
        return found

    def apply(self, row: NDArray[np.float32]) -> None:
        """Mask them in a row of logits [V]."""
        row[self.last()] = -np.inf
