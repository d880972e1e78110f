"""Tiles, warps and stages: every candidate timed, the best of each row of the tables written for this GPU.

Candidates are compiled first, by as many processes as there are cores, into Triton's cache. One whose result
has other bits than the row's own is not taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from optpipe_kernels.triton.launch import Launch
from optpipe_kernels.triton.tiles import TABLES, Tile, path_of

from .cases import Place, timed
from .limits import OverTimeError
from .tunable import KERNELS, Table, candidates, place_key

COMPILING = 0.5  # of the time, at most, before the first candidate is timed


def tune(
    place: Place, seconds: float, folder: Path | None = None, kernels: tuple[str, ...] = tuple(KERNELS)
) -> dict[str, str]:
    """Tune until the time is over, and write the tables that changed → what came of each kernel.

    Args:
        seconds: that it may take.
        folder: of the tables; this GPU's own among the checked-in ones when None.
        kernels: which tables.
    """
    deadline = time.monotonic() + seconds
    into, found = folder or _folder(place), {}
    tables = {kernel: _table(kernel, place) for kernel in kernels}
    compiled = _compile_all(tables, place, COMPILING * seconds)
    for left, (kernel, table) in zip(range(len(tables), 0, -1), tables.items(), strict=True):
        now = time.monotonic()
        changed, tried = _tune_table(kernel, table, place, now + max(0.0, deadline - now) / left)
        if changed or folder:
            into.mkdir(parents=True, exist_ok=True)
            lines = ",\n".join(f"    {json.dumps(row)}" for row in table)
            (into / f"{kernel}.json").write_text(f"[\n{lines}\n]\n")
        found[kernel] = f"{changed} of {len(table)} rows changed, {tried} tiles timed"
    return {**found, "compiled ahead": compiled}


def _table(kernel: str, place: Place) -> list[Table]:
    rows: list[Table] = json.loads(path_of(kernel, place_key(place).partition("/")[0]).read_text())
    return rows


def _folder(place: Place) -> Path:
    from .machine import slug

    base = place_key(place).partition("/")[0]
    return TABLES / base / slug(torch.cuda.get_device_properties(place.device).name)


def _tune_table(kernel: str, table: list[Table], place: Place, deadline: float) -> tuple[int, int]:
    """Put the fastest candidate into each row → rows that are others than before, candidates timed."""
    changed = tried = 0
    for row in table:
        if time.monotonic() > deadline:
            break
        try:
            best, count = _best(kernel, row, place, deadline)
        except OverTimeError:  # the rows before keep what was found
            break
        tried += count
        changed += best != row
        row.update(best)
    return changed, tried


def _best(kernel: str, row: Table, place: Place, deadline: float) -> tuple[Table, int]:
    """The fastest of a row and its candidates that has the row's bits, and how many candidates were timed."""
    call, tried = KERNELS[kernel].call(row, place), 0
    if call is None:
        return row, 0
    best, fastest, exact = dict(row), *_measured(kernel, row, call, place)
    for candidate in islice(candidates(row, KERNELS[kernel].space), 2 if place.dry else None):
        if time.monotonic() > deadline:
            break
        seconds, result = _measured(kernel, candidate, call, place)
        tried += 1
        if seconds < 0.98 * fastest and _same(result, exact, place):  # less is noise
            best, fastest = candidate, seconds
    return best, tried


def _measured(kernel: str, row: Table, call: Any, place: Place) -> tuple[float, torch.Tensor | None]:
    """Seconds and the result; infinite where it does not run."""
    with using(kernel, row):
        found = timed([call], place)
        if isinstance(found, str):
            return float("inf"), None
        return found, call()


def _same(result: torch.Tensor | None, exact: torch.Tensor | None, place: Place) -> bool:
    """Whether a candidate gives the row's own bits; the interpreter's products have bits of their own."""
    if result is None or exact is None:
        return result is not None
    return place.dry or torch.equal(result, exact)


@contextlib.contextmanager
def using(kernel: str, row: Table) -> Iterator[None]:
    """Launches of this kernel take this row's tile, whatever their sizes; other kernels take their own."""
    module = KERNELS[kernel].module
    given, real = Tile(row["constants"], row["num_warps"], row["num_stages"]), module.tile

    def tile(name: str, key: str, **bucket: int) -> Tile:
        return given if name == kernel else real(name, key, **bucket)

    with mock.patch.object(module, "tile", tile):
        yield


def _compile_all(tables: dict[str, list[Table]], place: Place, seconds: float) -> str:
    """Fill Triton's cache with the candidates, as far as the time goes."""
    if place.dry:
        return "nothing, in a dry run"
    chip = int(place_key(place).partition("/")[0].removeprefix("sm_"))
    major, minor = torch.cuda.get_device_capability(place.device)
    if chip != 10 * major + minor:
        return f"nothing: the table of sm_{chip} is used on another chip"
    work = [
        (kernel, row, place, chip)
        for kernel, table in tables.items()
        for own in table
        for row in (own, *candidates(own, KERNELS[kernel].space))
    ]
    pool = ProcessPoolExecutor(min(16, os.cpu_count() or 1), mp_context=get_context("spawn"))
    futures = [pool.submit(compile_candidate, *it) for it in work]
    done = wait(futures, timeout=seconds).done
    pool.shutdown(wait=False, cancel_futures=True)
    failed = sum(future.exception() is not None for future in done)
    return f"{len(done)} of {len(futures)} tiles" + (f", of which {failed} do not compile" if failed else "")


def compile_candidate(kernel: str, row: Table, place: Place, chip: int) -> int:
    """Compile what a candidate launches, without a GPU → how many launches."""
    nowhere, count = replace(place, device=torch.device("meta")), 0

    def compiled(launch: Launch) -> None:
        nonlocal count
        count += 1
        launch.compile(chip)

    with using(kernel, row), mock.patch.object(Launch, "run", compiled):
        call = KERNELS[kernel].call(row, nowhere)
        if call is not None:
            call()
    return count
