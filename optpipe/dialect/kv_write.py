"""``kv_write``: this step's keys and values into their cache slots.

Slot s of a cache [P, block, H_kv, D] is row s % block of block s // block.
"""

from __future__ import annotations

import torch

from ..errors import KernelError
from .op import define


def _fake(
    k: torch.Tensor, v: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor
) -> None:
    return None


@define(
    "kv_write(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots) -> ()", fake=_fake
)
def kv_write(
    k: torch.Tensor, v: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor
) -> None:
    """Write keys and values in place.

    Args:
        k: [T, H_kv, D].
        v: [T, H_kv, Dv].
        k_cache: [P, block, H_kv, D], changed in place.
        v_cache: [P, block, H_kv, Dv], changed in place.
        slots: [T] int64, one a token; negative skips the token.

    Raises:
        KernelError: the operands disagree on T.

    Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving".
    """
    if not k.shape[0] == v.shape[0] == slots.shape[0]:
        raise KernelError(f"kv_write got {k.shape[0]} keys, {v.shape[0]} values and {slots.shape[0]} slots")
    keep = slots >= 0
    at = slots[keep]
    k_cache.view(-1, *k_cache.shape[2:])[at] = k[keep].to(k_cache.dtype)
    v_cache.view(-1, *v_cache.shape[2:])[at] = v[keep].to(v_cache.dtype)
