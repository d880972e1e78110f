"""``attention``: causal attention of one sequence over itself, before it is paged.

    score[i, j] = softcap(scale · q[i]·k[j]) + alibi · (j − i)        where j is visible from i
    y[i] = Σ_j softmax_j(score[i, ·] and the sink) · v[j]

A sink is one more score per head in the softmax's denominator that carries no value.
"""

from __future__ import annotations

import torch

from ..errors import KernelError
from .mask import visible
from .op import accumulator, define

ROWS_AT_ONCE = 256  # query rows a slice, so that scores of [H, rows, T] stay small at any T


def head_groups(q: torch.Tensor, k: torch.Tensor) -> int:
    """Query heads a KV head."""
    heads, kv_heads = q.shape[1], k.shape[1]
    if heads % kv_heads:
        raise KernelError(f"attention needs H divisible by H_kv, got {heads} and {kv_heads}")
    return int(heads // kv_heads)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: torch.Tensor | None,
    alibi: torch.Tensor | None,
    query_at: torch.Tensor,
    key_at: torch.Tensor,
    seen: torch.Tensor,
    *,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Dense attention of a few rows: q [N, H, D] over k, v [S, H_kv, ·] where ``seen`` [N, S] is True.

    Returns [N, H, Dv] in the accumulator's dtype.
    """
    wide = accumulator(q)
    groups = head_groups(q, k)
    rows, heads, _ = q.shape
    grouped = q.to(wide).reshape(rows, k.shape[1], groups, -1)
    score = torch.einsum("nhgd,shd->hgns", grouped, k.to(wide)) * scale
    if softcap is not None:
        score = softcap * torch.tanh(score / softcap)
    if alibi is not None:
        slope = alibi.to(wide).reshape(k.shape[1], groups, 1, 1)
        score = score + slope * (key_at[None, :] - query_at[:, None])
    score = score.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        sink = sinks.to(wide).reshape(k.shape[1], groups, 1, 1).expand(-1, -1, rows, 1)
        weight = torch.softmax(torch.cat((score, sink), dim=-1), dim=-1)[..., :-1]
    else:
        weight = torch.softmax(score, dim=-1)
    return torch.einsum("hgns,shd->nhgd", weight, v.to(wide)).reshape(rows, heads, -1)


def _fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    alibi: torch.Tensor | None = None,
    *,
    scale: float,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    return q.new_empty((q.shape[0], q.shape[1], v.shape[2]))


@define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask=None, Tensor? sinks=None, Tensor? alibi=None,"
    " *, float scale, int? window=None, int? chunk=None, float? softcap=None) -> Tensor",
    fake=_fake,
)
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    alibi: torch.Tensor | None = None,
    *,
    scale: float,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal self-attention of one sequence.

    Args:
        q: [T, H, D].
        k: [T, H_kv, D] with H a multiple of H_kv.
        v: [T, H_kv, Dv].
        mask: [1, 1, T, T] bool as the model passed it; None once clean-up has folded it.
        sinks: [H] extra logits in the softmax's denominator.
        alibi: [H] slopes.
        scale: factor on q·k.
        window: tokens seen, the token itself included.
        chunk: tokens see only their own multiple of this.
        softcap: scores become softcap · tanh(score / softcap).

    Returns:
        [T, H, Dv], in ``q``'s dtype.

    Source: Vaswani et al. 2017; sinks as in gpt-oss, softcap as in Gemma 2, slopes as in Press et al. 2022.
    """
    tokens = q.shape[0]
    at = torch.arange(tokens, device=q.device)
    rows = []
    for start in range(0, tokens, ROWS_AT_ONCE):
        query_at = at[start : start + ROWS_AT_ONCE]
        seen = visible(query_at[:, None], at[None, :], window, chunk)
        if mask is not None:
            seen = seen & mask[0, 0, start : start + ROWS_AT_ONCE]
        rows.append(
            attend(
                q[start : start + ROWS_AT_ONCE],
                k,
                v,
                sinks,
                alibi,
                query_at,
                at,
                seen,
                scale=scale,
                softcap=softcap,
            )
        )
    return torch.cat(rows).to(q.dtype)
