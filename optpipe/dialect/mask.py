"""``mask``: what a model asked its attention to see, before clean-up folds it into ``attention``.

It lives only between tracing and the end of the trace: no target lowers it.
"""

from __future__ import annotations

import torch

from ..errors import KernelError
from .op import define

KINDS = ("causal", "window", "chunk")


def visible(query: torch.Tensor, key: torch.Tensor, window: int | None, chunk: int | None) -> torch.Tensor:
    """Whether the key at position ``key`` is seen from position ``query``, as broadcast booleans.

    A window of w shows the token itself and the w − 1 before it; a chunk of c shows the tokens of
    the same multiple of c.
    """
    seen = key <= query
    if window is not None:
        seen = seen & (key > query - window)
    if chunk is not None:
        seen = seen & (key // chunk == query // chunk)
    return seen


def _fake(anchor: torch.Tensor, *, kind: str, size: int | None = None) -> torch.Tensor:
    tokens = anchor.shape[1]
    return anchor.new_empty((1, 1, tokens, tokens), dtype=torch.bool)


@define("mask(Tensor anchor, *, str kind, int? size=None) -> Tensor", fake=_fake)
def mask(anchor: torch.Tensor, *, kind: str, size: int | None = None) -> torch.Tensor:
    """A boolean mask, True where a key may be seen.

    Args:
        anchor: [1, T, ...]; gives T and the device.
        kind: causal, window or chunk.
        size: tokens in the window or chunk.

    Returns:
        [1, 1, T, T] bool.

    Source: the mask functions of transformers' ``masking_utils``.
    """
    if kind not in KINDS:
        raise KernelError(f"mask kind '{kind}' is not one of {', '.join(KINDS)}")
    at = torch.arange(anchor.shape[1], device=anchor.device)
    window = size if kind == "window" else None
    chunk = size if kind == "chunk" else None
    return visible(at[:, None], at[None, :], window, chunk)[None, None]
