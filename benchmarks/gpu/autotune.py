"""Tiles, warps and stages: every candidate timed, the best of each row of the table written for this GPU.

What moves bits (the blocks in which k is walked, the span of keys) is not varied, so batch invariance stays.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from optpipe_kernels.triton import dense_linear, greedy_head, quant_linear
from optpipe_kernels.triton.launch import Launch
from optpipe_kernels.triton.packing import repack
from optpipe_kernels.triton.tiles import TABLES, Tile, device_key

from .cases import Place, Run, timed

KERNELS: dict[str, tuple[ModuleType, dict[str, tuple[int, ...]]]] = {
    "dense_linear": (dense_linear, {"BLOCK_N": (64, 128), "num_warps": (4, 8), "num_stages": (3, 4, 5, 6)}),
    "quant_linear": (quant_linear, {"BLOCK_N": (64, 128), "num_warps": (4, 8), "num_stages": (3, 4, 5)}),
    "greedy_head": (greedy_head, {"BLOCK_V": (64, 128), "num_warps": (4, 8), "num_stages": (3, 4, 5)}),
}
"""Kernel → its module, and what is varied around each row of its table."""

ROWS = (16, 32, 64, 128, 1024)


def tune(place: Place, seconds: float, folder: Path | None = None) -> dict[str, int]:
    """Tune until the time is over, and write what was found → rows changed, by kernel.

    Args:
        seconds: that it may take.
        folder: of the tables; this GPU's own among the checked-in ones when None.
    """
    deadline = time.monotonic() + seconds
    into = folder or _folder(place)
    changed = {}
    for kernel, (module, space) in KERNELS.items():
        key = device_key(place.device)
        path = TABLES / key.partition("/")[0] / f"{kernel}.json"
        table = json.loads(path.read_text())
        count = 0
        for row in table:
            if time.monotonic() > deadline:
                break
            runs = _runs(kernel, row, place)
            if runs is not None:
                count += _tuned(module, row, space, runs, place, deadline)
        changed[kernel] = count
        into.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f"    {json.dumps(row)}" for row in table)
        (into / f"{kernel}.json").write_text(f"[\n{lines}\n]\n")
    return changed


def _folder(place: Place) -> Path:
    from .machine import slug

    base = device_key(place.device).partition("/")[0]
    return TABLES / base / slug(torch.cuda.get_device_properties(place.device).name)


def _tuned(
    module: ModuleType,
    row: dict[str, Any],
    space: dict[str, tuple[int, ...]],
    runs: list[Run],
    place: Place,
    deadline: float,
) -> int:
    """Put the fastest candidate into a row → whether that is another than before."""
    best, fastest = dict(row), _seconds(module, row, runs, place)
    for candidate in _candidates(row, space, place):
        if time.monotonic() > deadline:
            break
        seconds = _seconds(module, candidate, runs, place)
        if seconds < 0.98 * fastest:  # less is noise
            best, fastest = candidate, seconds
    different = best != row
    row.update(best)
    return int(different)


def _candidates(
    row: dict[str, Any], space: dict[str, tuple[int, ...]], place: Place
) -> Iterator[dict[str, Any]]:
    found = itertools.product(*space.values())
    for values in itertools.islice(found, 2) if place.dry else found:
        made = json.loads(json.dumps(row))
        for name, value in zip(space, values, strict=True):
            into = made["constants"] if name in made["constants"] else made
            if name in into:
                into[name] = value
        if made != row:
            yield made


def _seconds(module: ModuleType, row: dict[str, Any], runs: list[Run], place: Place) -> float:
    with _using(module, Tile(row["constants"], row["num_warps"], row["num_stages"])):
        found = timed(runs, place)
    return found if isinstance(found, float) else float("inf")


@contextlib.contextmanager
def _using(module: ModuleType, tile: Tile) -> Iterator[None]:
    """The module's launches take this tile, whatever they ask for."""
    with mock.patch.object(module, "tile", return_value=tile):
        yield


def _runs(kernel: str, row: dict[str, Any], place: Place) -> list[Run] | None:
    """The kernel on an 8B model's sizes, with rows that a table's row is for; None where it is for others."""
    when = row["when"]
    bound = when.get("rows", [None, None])
    low, high = bound if isinstance(bound, list) else (bound, bound)
    rows = next((it for it in ROWS if (low or 0) <= it <= (high or 1 << 30)), None)
    if rows is None or when.get("invariant", 1) == 0 or row["constants"].get("GEMV"):
        return None
    rows = place.size(rows, 2)
    make = {"device": place.device, "dtype": place.dtype}
    n, k = (place.size(128256 if kernel == "greedy_head" else 28672, 128), place.size(4096, 256))
    x = torch.randn(rows, k, **make)
    packed = kernel == "quant_linear" or when.get("quantized") == 1
    weight: Any = _packed(n, k, place) if packed else torch.randn(n, k, **make)
    function: Callable[..., Any] = getattr(KERNELS[kernel][0], kernel)
    return [lambda: function(x, weight)]


def _packed(n: int, k: int, place: Place) -> Any:
    words = torch.randint(0, 1 << 31, (n, k // 8), device=place.device, dtype=torch.int64).to(torch.int32)
    scale = torch.rand(n, k // 128, device=place.device)
    return repack(words, scale, bits=4, group=128, dtype=place.dtype)


__all__ = ["KERNELS", "Launch", "tune"]
