"""Weights kept in memory between runs, up to a budget.

A model is run dozens of times while it is optimized. Runs sweep all weights in the same order, so the
usual least-recently-used rule would keep nothing that is wanted next; what came first stays instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable

import torch

from ..machine import group_memory
from .store import LazyWeight


class WeightCache:
    """Loads weights, and keeps the first that fit.

    Args:
        budget: bytes to keep at most.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._left = budget
        self._kept: dict[tuple[int, Hashable], tuple[LazyWeight, torch.Tensor]] = {}

    def load(
        self, weight: LazyWeight, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> torch.Tensor:
        """The values of ``weight``, as stored where ``dtype`` or ``device`` is None. Not to be written to."""
        return self.derived(weight, (dtype, device), lambda: weight.load().to(device=device, dtype=dtype))

    def derived(self, weight: LazyWeight, how: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What ``make`` makes of ``weight``; ``how`` tells it from other things made of the same weight."""
        key = (id(weight), how)
        if key in self._kept:
            return self._kept[key][1]
        tensor = make()
        size = tensor.numel() * tensor.element_size()
        if size <= self._left:
            self._left -= size
            self._kept[key] = (weight, tensor)  # the weight too, so that its id stays its own
        return tensor

    def keeps(self, weight: LazyWeight, how: Hashable, size: int) -> bool:
        """Whether :meth:`derived` has this, or would keep it, at ``size`` bytes."""
        return (id(weight), how) in self._kept or size <= self._left

    def retain(self, weights: Iterable[LazyWeight]) -> None:
        """Let go of everything made of other weights than these."""
        wanted = {id(weight) for weight in weights}
        for key in [key for key in self._kept if key[0] not in wanted]:
            _, tensor = self._kept.pop(key)
            self._left += tensor.numel() * tensor.element_size()


def half_of_memory() -> int:
    """Half of the bytes of memory that are free now, of the machine and of this process's control groups."""
    free, left = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), group_memory()
    return (free if left is None else min(free, left)) // 2
