"""``gather_rows``: only the rows whose logits are wanted reach the LM head."""

from __future__ import annotations

import torch

from .op import define


def _fake(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return x.new_empty((rows.shape[0], *x.shape[1:]))


@define("gather_rows(Tensor x, Tensor rows) -> Tensor", fake=_fake)
def gather_rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Pick rows.

    Args:
        x: [T, K].
        rows: [R] int64, each in [0, T).

    Returns:
        [R, K].

    Source: every serving engine; a step wants logits for one row a sequence, not for every token.
    """
    return x.index_select(0, rows)
