"""What the rules of a request do to its next row of logits, as an executor that draws tokens takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optpipe.targets.protocol import BANNED, PENALIZED, Edits

from .penalties import Penalties

_NEUTRAL = (1.0, 0.0, 0.0)  # repetition, presence, frequency
_NO_IDS, _NO_NUMBERS = np.zeros(0, np.int64), np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one row.

    Attributes:
        bias: token ids, and what is added to their logits.
        penalties: of the sequence.
        banned: tokens that may not come.
        mask: [at least V / 32], token t may come if bit t % 32 of word t // 32 is 1; None where all may.
    """

    bias: tuple[NDArray[np.int64], NDArray[np.float32]] | None
    penalties: Penalties | None
    banned: Sequence[int]
    mask: NDArray[np.uint32] | None

    def entries(self) -> _Entries:
        """What is done to single tokens, each once."""
        biased, biases = self.bias or (_NO_IDS, _NO_NUMBERS)
        counted, counts = (_NO_IDS, _NO_NUMBERS) if self.penalties is None else self.penalties.counted()
        if self.bias is None and not self.banned:
            flags = np.full(len(counted), PENALIZED, np.int32)
            return _Entries(counted.astype(np.int32), np.zeros_like(counts), counts, flags)
        banned = np.asarray(self.banned, dtype=np.int64)
        tokens, place = np.unique(np.concatenate([biased, counted, banned]), return_inverse=True)
        made = _Entries(
            tokens.astype(np.int32),
            np.zeros(len(tokens), np.float32),
            np.zeros(len(tokens), np.float32),
            np.zeros(len(tokens), np.int32),
        )
        first, second = len(biased), len(biased) + len(counted)
        made.biases[place[:first]] = biases
        made.counts[place[first:second]] = counts
        made.flags[place[first:second]] |= PENALIZED
        made.flags[place[second:]] |= BANNED
        return made


@dataclass(frozen=True, slots=True)
class _Entries:
    """Single tokens of a row; see ``Edits``."""

    tokens: NDArray[np.int32]
    biases: NDArray[np.float32]
    counts: NDArray[np.float32]
    flags: NDArray[np.int32]


def edits_of(rows: Sequence[Rules]) -> Edits | None:
    """The rules of a step's rows together; None where they do nothing."""
    if not any(row.bias or row.penalties or row.banned or row.mask is not None for row in rows):
        return None
    entries = [row.entries() for row in rows]
    masks = [row.mask for row in rows if row.mask is not None]
    masked = np.full(len(rows), -1, np.int32)
    masked[[i for i, row in enumerate(rows) if row.mask is not None]] = np.arange(len(masks))
    factors = [_NEUTRAL if row.penalties is None else row.penalties.factors for row in rows]
    return Edits(
        starts=np.cumsum([0, *(len(it.tokens) for it in entries)], dtype=np.int32),
        tokens=np.concatenate([it.tokens for it in entries]),
        biases=np.concatenate([it.biases for it in entries]),
        counts=np.concatenate([it.counts for it in entries]),
        flags=np.concatenate([it.flags for it in entries]),
        penalties=np.asarray(factors, np.float32),
        masked=masked,
        masks=np.stack(masks).view(np.int32) if masks else np.zeros((0, 0), np.int32),
    )
