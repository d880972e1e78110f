"""Weights kept in memory between runs, up to a budget.

A model is run dozens of times while it is optimized. Runs sweep all weights in the same order, so the
usual least-recently-used rule would keep nothing that is wanted next; what came first stays instead.
"""

from __future__ import annotations

import torch

from .store import LazyWeight


class WeightCache:
    """Loads weights, and keeps the first that fit.

    Args:
        budget: bytes to keep at most.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget
        self._kept: dict[
            tuple[int, torch.dtype | None, torch.device | None], tuple[LazyWeight, torch.Tensor]
        ] = {}

    def load(
        self, weight: LazyWeight, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> torch.Tensor:
        """The values of ``weight``, as stored where ``dtype`` or ``device`` is None. Not to be written to."""
        key = (id(weight), dtype, device)
        if key in self._kept:
            return self._kept[key][1]
        tensor = weight.load().to(device=device, dtype=dtype)
        size = tensor.numel() * tensor.element_size()
        if size <= self._left:
            self._left -= size
            self._kept[key] = (weight, tensor)  # the weight too, so that its id stays its own
        return tensor
