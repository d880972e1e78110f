"""Repetition, presence and frequency penalties of one growing sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .params import SamplingParams


class Penalties:
    """Which tokens have been, and how often; costs as many steps as there are distinct tokens.

    Tokens of the prompt count for the repetition penalty only.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocab_size: int) -> None:
        self._repetition = np.float32(params.repetition_penalty)
        self._presence = np.float32(params.presence_penalty)
        self._frequency = np.float32(params.frequency_penalty)
        counted = prompt if params.repetition_penalty != 1.0 else ()
        known = sorted(it for it in set(counted) if 0 <= it < vocab_size)
        self._place = {token: place for place, token in enumerate(known)}
        self._ids = np.zeros(max(64, 2 * len(known)), dtype=np.int64)
        self._ids[: len(known)] = known
        self._counts = np.zeros(len(self._ids), dtype=np.float32)

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        """Whether there is anything to do."""
        neutral = params.repetition_penalty == 1.0
        return not (neutral and params.presence_penalty == 0.0 and params.frequency_penalty == 0.0)

    @property
    def factors(self) -> tuple[np.float32, np.float32, np.float32]:
        """Repetition, presence and frequency penalty."""
        return self._repetition, self._presence, self._frequency

    def counted(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The tokens that have been, and how often each is in the output."""
        return self._ids[: len(self._place)], self._counts[: len(self._place)]

    def advance(self, token: int) -> None:
        """Count an output token."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1

    def apply(self, row: NDArray[np.float32]) -> None:
        """Change a row of logits [V] in place."""
        ids, counts = self.counted()
        values = row[ids]
        if self._repetition != 1.0:
            values = np.where(values > 0, values / self._repetition, values * self._repetition)
        values = values - self._frequency * counts - self._presence * (counts > 0).astype(np.float32)
        row[ids] = values
