"""The choice of the next token from a row of logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import KernelError, RequestError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: keep only this many of the likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities reach this sum; 1 keeps all.
        seed: of the random numbers; the same seed gives the same text.

    Raises:
        RequestError: a value is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise RequestError(f"temperature must be 0 or more and finite, got {self.temperature}.")
        if self.top_k < 0:
            raise RequestError(f"top_k must be 0 or more, got {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must be over 0 and at most 1, got {self.top_p}.")
        if self.seed < 0:
            raise RequestError(f"seed must be 0 or more, got {self.seed}.")


class Sampler:
    """Chooses tokens for one sequence, with random numbers of its own."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token.

        Args:
            logits: [V], one row.

        Raises:
            KernelError: the row has a NaN or an infinity, or nothing but -inf.
        """
        if not np.isfinite(logits.max()):
            raise KernelError("The model's logits are not numbers, so no token can be chosen.")
        if self.sampling.temperature == 0:
            return int(np.argmax(logits))
        order, probabilities = candidates(logits, self.sampling)
        return int(order[self._random.choice(len(order), p=probabilities)])


def candidates(
    logits: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may come, likeliest first, and their probabilities after temperature, top-k and top-p.

    Args:
        logits: [V], one row.

    Returns:
        ids [C] and probabilities [C] that sum to 1.
    """
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    below = logits[order].astype(np.float64) - float(logits[order[0]])
    with np.errstate(over="ignore"):  # a temperature near 0 sends all but the likeliest to -inf
        weights = np.exp(below / sampling.temperature)
    probabilities = weights / weights.sum()
    if sampling.top_p < 1:
        # Those before which the sum has not been reached: at least the first.
        kept = int((np.cumsum(probabilities) - probabilities < sampling.top_p).sum())
        order, probabilities = order[:kept], probabilities[:kept] / probabilities[:kept].sum()
    return order, probabilities
