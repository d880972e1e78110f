"""Tokens that the step before gave take their places among those of the next.

y[t] = x[t] where x[t] ≥ 0, else sampled[−1 − x[t]]
"""

from __future__ import annotations

import torch


def fed_tokens(ids: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    """The tokens of a step.

    Args:
        ids: [T] int64, −1 − r for the token of row r of the step before.
        sampled: [rows] int64, the tokens of the step before.

    Returns:
        [T] int64, none negative.
    """
    from_rows = sampled[(-1 - ids).clamp_min_(0)]
    return torch.where(ids < 0, from_rows, ids)
