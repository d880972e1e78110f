"""``Operands``: what one layer's paged attention reads, checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from optpipe.errors import KernelError

from .attention_work import Shape
from .kv_cache import KINDS


@dataclass(frozen=True, slots=True)
class Operands:
    """What one layer's attention reads; see ``paged_attention`` for shapes."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    sinks: torch.Tensor | None = None
    alibi: torch.Tensor | None = None
    k_scales: torch.Tensor | None = None
    v_scales: torch.Tensor | None = None
    scale: float = 1.0
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None

    @property
    def shape(self) -> Shape:
        """The layer's static facts."""
        return Shape(
            self.q.shape[1], self.k_cache.shape[2], self.q.shape[2], self.v_cache.shape[3],
            self.k_cache.element_size(), self.window, self.chunk,
        )  # fmt: skip

    @property
    def kind(self) -> int:
        """How the cache holds numbers, as the kernels say it."""
        return KINDS.get(self.k_cache.dtype, 0)

    def check(self) -> None:
        """Raise KernelError where operands do not fit each other."""
        q, k, v = self.q, self.k_cache, self.v_cache
        if k.shape[:3] != v.shape[:3] or k.dtype != v.dtype or k.shape[3] != q.shape[2]:
            raise KernelError(
                f"paged_attention got q {tuple(q.shape)}, keys {tuple(k.shape)} of {k.dtype} and values"
                f" {tuple(v.shape)} of {v.dtype}"
            )
        if any(x.stride(-1) != 1 for x in (q, k, v)):
            raise KernelError("paged_attention needs q, keys and values contiguous in their last dimension")
        scales = self.k_scales, self.v_scales
        if any((given is None) == (self.kind > 0) for given in scales):
            need = "needs" if self.kind else "takes no"
            raise KernelError(f"a cache of {k.dtype} {need} k_scales and v_scales")
        for given in scales:
            if given is not None and (given.shape != k.shape[:3] or given.stride(-1) != 1):
                raise KernelError(f"scales must be {tuple(k.shape[:3])}, got {tuple(given.shape)}")
        if self.scale <= 0:
            raise KernelError(f"paged_attention needs a positive scale, got {self.scale}")
