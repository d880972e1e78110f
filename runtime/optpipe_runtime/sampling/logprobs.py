"""Log-probabilities of tokens as the model gave them: before penalties, temperature, masks and grammar."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .candidates import Folded
from .mask import Scratch


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token that came, and those that were likely in its place.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability; -inf for a probability of 0.
        top: (token id, logprob) of the likeliest tokens, likeliest first, lower ids first among equals. The
            token that came is among them only if it is that likely.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(row: NDArray[np.float32], token: int, top: int, scratch: Scratch) -> TokenLogprobs:
    """The log-probabilities of one row.

    Args:
        row: [V], the model's logits.
        token: which one came.
        top: how many of the likeliest to report.

    Raises:
        KernelError: the row has a NaN or +inf, or nothing but -inf.
    """
    folded = Folded(row)
    norm = folded.peak + float(np.log(folded.weigh(1.0, scratch.weights).total))
    order = folded.top(min(top, len(row)))
    likeliest = tuple((int(it), float(row[it]) - norm) for it in order)
    return TokenLogprobs(token, float(row[token]) - norm, likeliest)
