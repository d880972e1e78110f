"""Recipes → tensors on the device, straight from the artifact's files.

    file → pinned memory → device        pieces of 32 MB, several threads, each with a stream of its own
    device                               joined, converted, repacked: at the device's speed

A few recipes are on their way at any moment, so that what is not yet converted stays small.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from optpipe.errors import CapacityError
from optpipe.weights.store import LazyWeight

from . import row_wise
from .operations import Operations
from .recipes import Dense, EightBits, Experts, Grid, Joined, Plain, Quantized, Recipe, Rows, names_of
from .steps import Lowered

PIECE = 32 << 20  # bytes; a pinned buffer of each thread
THREADS = 8
AHEAD = 2 << 30  # bytes on their way to the device, about

Arrived = Callable[[], torch.Tensor]
"""Waits for a weight and gives it, on the device as it is stored."""


def recipes_of(lowered: Lowered) -> tuple[Recipe, ...]:
    """Every weight of the steps, each once, in order of first use."""
    kinds = (Plain, Dense, Experts, Joined, Quantized, EightBits, Rows)
    found = (it for step in lowered.steps for it in step.operands())
    return tuple(dict.fromkeys(it for it in found if isinstance(it, kinds)))


def load_weights(
    recipes: Iterable[Recipe],
    read: Mapping[str, LazyWeight],
    device: torch.device,
    operations: Operations,
) -> dict[Recipe, Any]:
    """Every weight, on the device.

    Raises:
        CapacityError: they do not fit.
    """
    try:
        if device.type != "cuda":
            return {it: make(it, _here(it, read, device), operations) for it in recipes}
        with Uploader(device) as uploader:
            return dict(_uploaded(recipes, read, uploader, operations))
    except torch.OutOfMemoryError as error:
        raise CapacityError(f"The weights do not fit on {device}.", hint="quantize them, or more") from error


def make(recipe: Recipe, stored: Mapping[str, torch.Tensor], operations: Operations) -> Any:
    """One weight of the steps, from those of the artifact as they are stored, on the same device."""
    dtype = operations.dtype
    match recipe:
        case Plain(name, wide):
            tensor = stored[name]
            if not tensor.is_floating_point():
                return tensor
            return tensor.to(torch.float32 if wide or tensor.dtype.itemsize > 2 else dtype).contiguous()
        case Dense(names, transposed):
            parts = [stored[name].T if transposed else stored[name] for name in names]
            return torch.cat([part.to(dtype) for part in parts]) if len(parts) > 1 else _own(parts[0], dtype)
        case Experts(name, transposed, interleaved):
            whole = stored[name].transpose(1, 2) if transposed else stored[name]
            if not interleaved:
                return _own(whole, dtype)
            return torch.cat([_own(whole[:, at::2], dtype) for at in (0, 1)], dim=1)
        case Joined(parts):
            device = next(iter(stored.values())).device
            pieces = [
                torch.zeros(size, dtype=dtype, device=device) if name is None else stored[name].to(dtype)
                for name, size in parts
            ]
            return torch.cat(pieces)
        case Quantized(parts, bits, group):
            grids = [_grid(part, stored) for part in parts]
            packed, scale = torch.cat([grid[0] for grid in grids]), torch.cat([grid[1] for grid in grids])
            lows = [grid[2] for grid in grids if grid[2] is not None]
            return operations.packed(packed, scale, torch.cat(lows) if lows else None, bits, group)
        case EightBits(parts):
            return row_wise.joined((stored[part.packed], stored[part.scale]) for part in parts)
        case Rows(grid):
            return _grid(grid, stored)


def _own(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype).contiguous()


def _grid(
    grid: Grid, stored: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    return stored[grid.packed], stored[grid.scale], None if grid.minimum is None else stored[grid.minimum]


def _here(recipe: Recipe, read: Mapping[str, LazyWeight], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: read[name].load().to(device) for name in names_of(recipe)}


def _uploaded(
    recipes: Iterable[Recipe], read: Mapping[str, LazyWeight], uploader: Uploader, operations: Operations
) -> Iterator[tuple[Recipe, Any]]:
    coming: deque[tuple[Recipe, dict[str, Arrived], int]] = deque()
    size = 0
    for recipe in recipes:
        arrivals = {name: uploader.fetch(read[name]) for name in names_of(recipe)}
        bytes_ = sum(read[name].nbytes for name in arrivals)
        coming.append((recipe, arrivals, bytes_))
        size += bytes_
        while size > AHEAD and len(coming) > 1:
            size -= coming[0][2]
            yield _arrived(*coming.popleft()[:2], operations)
    while coming:
        yield _arrived(*coming.popleft()[:2], operations)


def _arrived(recipe: Recipe, arrivals: Mapping[str, Arrived], operations: Operations) -> tuple[Recipe, Any]:
    return recipe, make(recipe, {name: wait() for name, wait in arrivals.items()}, operations)


def nbytes_of(weight: Any) -> int:
    """Bytes of a tensor, or of all tensors of a packed weight."""
    if isinstance(weight, torch.Tensor):
        return weight.nbytes
    if isinstance(weight, tuple | list):
        return sum(nbytes_of(part) for part in weight)
    parts = getattr(weight, "__dict__", None) or {
        name: getattr(weight, name) for name in getattr(weight, "__slots__", ())
    }
    return sum(nbytes_of(part) for part in parts.values()) if parts else 0


class Uploader:
    """Copies weights to a GPU, in pieces, several at once.

    Args:
        device: a CUDA device.
        threads: that read and copy; each has a pinned buffer and a stream.
    """

    def __init__(self, device: torch.device, threads: int = THREADS) -> None:
        self._device, self._local = device, threading.local()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="optpipe-upload")

    def fetch(self, weight: LazyWeight) -> Arrived:
        """Start to bring a weight to the device."""
        source = weight.load().contiguous()
        if source.is_cuda:  # it was made there
            return lambda: source
        out = torch.empty(source.shape, dtype=source.dtype, device=self._device)
        allocated = torch.cuda.Event()
        allocated.record(torch.cuda.current_stream(self._device))
        theirs, ours = source.view(-1).view(torch.uint8), out.view(-1).view(torch.uint8)
        pieces = [
            self._pool.submit(self._copy, theirs[at : at + PIECE], ours[at : at + PIECE], allocated)
            for at in range(0, theirs.numel(), PIECE)
        ]
        return lambda: self._wait(out, pieces)

    def _wait(self, out: torch.Tensor, pieces: list[Future[torch.cuda.Event]]) -> torch.Tensor:
        for piece in pieces:
            torch.cuda.current_stream(self._device).wait_event(piece.result())
        return out

    def _copy(self, source: torch.Tensor, out: torch.Tensor, allocated: torch.cuda.Event) -> torch.cuda.Event:
        local = self._local
        if not hasattr(local, "stream"):
            torch.cuda.set_device(self._device)
            local.stream = torch.cuda.Stream(self._device)
            local.buffer = torch.empty(PIECE, dtype=torch.uint8, pin_memory=True)
            local.done = torch.cuda.Event()
            local.done.record(local.stream)
        local.done.synchronize()  # the buffer's last piece has left it
        room = local.buffer[: source.numel()]
        room.copy_(source)
        with torch.cuda.stream(local.stream):
            local.stream.wait_event(allocated)
            out.copy_(room, non_blocking=True)
            done = torch.cuda.Event()
            done.record(local.stream)
        local.done = done
        return done

    def __enter__(self) -> Uploader:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
