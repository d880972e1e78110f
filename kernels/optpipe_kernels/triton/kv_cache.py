"""``Cache``: the paged keys and values of one layer as a kernel writes them, and how they are held.

scale = max |x| / 127 (int8) or 448 (float8 e4m3), 1 for zeros;  code = x / scale, halves to even
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl

from optpipe.errors import KernelError

from .rows import e4m3_bits, largest_of, round_even

# How cached numbers are held: 0 as they are, 1 int8, 2 the bytes of float8 e4m3.
KINDS: Final = {torch.int8: 1, torch.float8_e4m3fn: 2}
LARGEST: Final = {0: 1.0, 1: 127.0, 2: 448.0}  # code, by the kind


@triton.jit
def encode(x, scale, KIND: tl.constexpr, LARGEST: tl.constexpr):
    """x [HEADS, N] as the cache holds it; ``scale`` [HEADS]."""
    if KIND == 0:
        y = x
    else:
        code = tl.minimum(tl.maximum(x.to(tl.float32) / scale[:, None], -LARGEST), LARGEST)
        y = round_even(code).to(tl.int8) if KIND == 1 else e4m3_bits(code)
    return y


@triton.jit
def scale_of(peak, LARGEST: tl.constexpr):
    """The scale [HEADS] of heads whose largest magnitude is ``peak``; NaN of NaN."""
    return tl.where(peak == 0, 1.0, peak * (1.0 / LARGEST))


@triton.jit
def larger(peak, x):
    """``peak`` and the largest magnitude of each row of x, whichever is larger; NaN if either is."""
    return tl.maximum(peak, largest_of(x.to(tl.float32)), propagate_nan=tl.PropagateNan.ALL)


@dataclass(frozen=True, slots=True)
class Cache:
    """Where keys and values go; scales only where the caches hold 8 bits.

    Attributes:
        keys: [P, block, H_kv, D].
        values: [P, block, H_kv, Dv], of the same dtype.
        slots: [T] int64 or int32; negative skips the token.
        k_scales, v_scales: [P, block, H_kv] float32, of equal strides.
    """

    keys: torch.Tensor
    values: torch.Tensor
    slots: torch.Tensor
    k_scales: torch.Tensor | None = None
    v_scales: torch.Tensor | None = None

    @property
    def kind(self) -> int:
        """How the cache holds numbers, as the kernels say it."""
        return KINDS.get(self.keys.dtype, 0)

    def check(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Raise KernelError where k [T, H_kv, D] and v [T, H_kv, Dv] do not fit."""
        if not k.shape[0] == v.shape[0] == self.slots.shape[0]:
            raise KernelError(
                f"kv_write got {k.shape[0]} keys, {v.shape[0]} values and {self.slots.shape[0]} slots"
            )
        wrong = k.shape[1:] != self.keys.shape[2:] or v.shape[1:] != self.values.shape[2:]
        if wrong or self.keys.dtype != self.values.dtype:
            raise KernelError(
                f"keys {tuple(k.shape)} and values {tuple(v.shape)} do not fit caches"
                f" {tuple(self.keys.shape)} of {self.keys.dtype} and {tuple(self.values.shape)}"
                f" of {self.values.dtype}"
            )
        if any((scales is None) == (self.kind > 0) for scales in (self.k_scales, self.v_scales)):
            need = "needs" if self.kind else "takes no"
            raise KernelError(f"a cache of {self.keys.dtype} {need} k_scales and v_scales")
