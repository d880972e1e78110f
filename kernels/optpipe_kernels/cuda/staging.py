"""A step's arrays in one buffer: written to pinned memory, brought to the device in one transfer.

    | token_ids | positions | … | block_tables | attention's lists |   each at a multiple of 16 bytes

The device's arrays are windows of its buffer, at the same places for every step whose arrays have the same
shapes: that is what captured graphs read. The pinned buffers take turns, so that the next step can be
written while the last transfer is still under way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ALIGNMENT = 16  # bytes: what kernels are compiled for
TURNS = 3  # pinned buffers
KEPT = 512  # layouts that are remembered: uncaptured steps have any shapes
_TORCH = {
    "int64": torch.int64, "int32": torch.int32, "float64": torch.float64, "float32": torch.float32,
}  # fmt: skip

Arrays = Mapping[str, NDArray[Any]]
Key = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, dtype and shape of every array."""


def key_of(arrays: Arrays) -> Key:
    """What tells apart steps whose arrays lie at different places."""
    return tuple((name, array.dtype.name, array.shape) for name, array in arrays.items())


@dataclass(frozen=True)
class Layout:
    """Where the arrays of one key lie.

    Attributes:
        begins: the first byte of each.
        nbytes: of all.
    """

    begins: tuple[int, ...]
    nbytes: int


def layout_of(key: Key) -> Layout:
    """The layout of a key.

    >>> layout_of((("a", "int64", (3,)), ("b", "int32", (2, 2))))
    Layout(begins=(0, 32), nbytes=48)
    """
    begins, at = [], 0
    for _, dtype, shape in key:
        begins.append(at)
        at += -(-math.prod(shape) * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT
    return Layout(tuple(begins), at)


class Staging:
    """Brings steps to the device.

    Args:
        device: where to.
        nbytes: room to begin with; more is made when a step needs it.

    Attributes:
        grown: how often more room was made; what was captured before reads memory that is gone.
    """

    def __init__(self, device: torch.device, nbytes: int = 1 << 16) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self.grown = 0
        self._layouts: dict[Key, Layout] = {}
        self._views: dict[Key, dict[str, torch.Tensor]] = {}
        self._turn = 0
        self._left: list[Any] = [None] * TURNS
        self._pinned: list[torch.Tensor] = []
        self._buffer = torch.zeros(0, dtype=torch.uint8, device=device)
        self._allocate(nbytes)

    def stage(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        """A step's arrays on the device, until the next step is staged."""
        key = key_of(arrays)
        layout = self._layout(key)
        turn = self._turn = (self._turn + 1) % TURNS
        if self._left[turn] is not None:
            self._left[turn].synchronize()
        host = self._pinned[turn].numpy()
        for array, begin in zip(arrays.values(), layout.begins, strict=True):
            room = host[begin : begin + array.nbytes].view(array.dtype)
            room.reshape(array.shape)[...] = array
        self._buffer[: layout.nbytes].copy_(self._pinned[turn][: layout.nbytes], non_blocking=True)
        if self._cuda:
            event = self._left[turn] = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
        return self._windows(key, layout)

    def _windows(self, key: Key, layout: Layout) -> dict[str, torch.Tensor]:
        found = self._views.get(key)
        if found is None:
            found = self._views[key] = {}
            for (name, dtype, shape), begin in zip(key, layout.begins, strict=True):
                kind = _TORCH[dtype]
                end = begin + math.prod(shape) * kind.itemsize
                found[name] = self._buffer[begin:end].view(kind).view(shape)
        return found

    def _layout(self, key: Key) -> Layout:
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= KEPT:
                self._layouts.clear()
                self._views.clear()
            layout = self._layouts[key] = layout_of(key)
        if layout.nbytes > self._buffer.numel():
            self._allocate(max(layout.nbytes, 2 * self._buffer.numel()))
            self.grown += 1
        return layout

    def _allocate(self, nbytes: int) -> None:
        self._views.clear()
        self._turn, self._left = 0, [None] * TURNS
        self._pinned = [torch.zeros(nbytes, dtype=torch.uint8, pin_memory=self._cuda) for _ in range(TURNS)]
        self._buffer = torch.zeros(nbytes, dtype=torch.uint8, device=self._device)
