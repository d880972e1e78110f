"""The weights of a plan: made from the artifact's once, kept packed in the user's cache folder, then mapped.

    <cache>/cpu/<key>/weights.bin    every weight at a multiple of 64 bytes
    <cache>/cpu/<key>/index.json     its own SHA-256, and below it
                                     {"arrays": {name: [offset, bytes, dtype, shape]},
                                      "sums": of every megabyte of weights.bin, as 64-bit words modulo 2^64}

Both are written to another folder that is then renamed, and checked whenever they are mapped: a flipped bit,
a lost end or a page of zeros is found, at the speed of memory (97 MB in 4 ms), by reading what the first step
reads anyway. It is no protection against somebody who may write to the folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .library import Pool
from .lowering.recipe import Recipe
from .lowering.view import External
from .making import Read, make, pieces
from .pack import LAYOUT
from .scratch import scratch_folder


@dataclass(frozen=True)
class Packed:
    """The weights of a plan.

    Attributes:
        arrays: by external.
        loaded: bytes of them that are in this process's own memory; 0 when they are mapped.
    """

    arrays: dict[External, NDArray[Any]]
    loaded: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return sum(array.nbytes for array in self.arrays.values())


_ALIGNMENT = 64
_SUMMED = 1 << 17  # words of a sum: 1 MB
_log = logging.getLogger("optpipe.cpu")


def pack_weights(recipes: Mapping[External, Recipe], read: Read, pool: Pool | None = None) -> Packed:
    """Every weight, in memory."""
    packed = Packed({external: make(recipe, read, pool) for external, recipe in recipes.items()})
    return replace(packed, loaded=packed.nbytes)


def cached_weights(
    recipes: Mapping[External, Recipe],
    read: Read,
    content: str,
    folder: Path,
    pool: Pool | None = None,
    forget: Callable[[], None] = lambda: None,
) -> Packed:
    """Every weight, mapped from the cache folder; packed into it first when they are not there.

    Args:
        content: tells the artifact from every other.
        folder: the cache folder; when it cannot be written to, the weights stay in memory, with a warning.
        forget: called between pieces; what ``read`` has brought into memory may leave it.
    """
    place = folder / "cpu" / _key(recipes, content)
    found = _mapped(place, recipes)
    if found is not None:
        return found
    if place.exists():
        _log.warning("the packed weights in %s are damaged, and are made anew", place)
    try:
        with scratch_folder(place.parent) as scratch:
            _write(scratch, recipes, read, pool, forget)
            if place.exists() and _mapped(place, recipes) is None:
                shutil.rmtree(place)  # damaged
            _rename(scratch, place)
            found = _mapped(place, recipes)
    except OSError as error:  # no space left, or the folder is another user's
        _log.warning("packed weights cannot be kept in %s, and stay in memory: %s", place, error)
        return pack_weights(recipes, read, pool)
    if found is None:
        _log.warning("the packed weights in %s cannot be read back; others stay in memory", place)
        return pack_weights(recipes, read, pool)
    return found


def _key(recipes: Mapping[External, Recipe], content: str) -> str:
    text = "\n".join([content, str(LAYOUT), *sorted(external.name for external in recipes)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _write(
    folder: Path,
    recipes: Mapping[External, Recipe],
    read: Read,
    pool: Pool | None,
    forget: Callable[[], None],
) -> None:
    index = {}
    with (folder / "weights.bin").open("wb") as file:
        for external, recipe in recipes.items():
            _pad(file)
            index[external.name] = _append(file, pieces(recipe, read, pool), forget)
        _pad(file)
        file.flush()
        os.fsync(file.fileno())
    sums = _sums(np.memmap(folder / "weights.bin", np.uint8, mode="r"))
    text = json.dumps({"arrays": index, "sums": sums})
    (folder / "index.json").write_text(f"{_digest(text)}\n{text}")


def _append(
    file: BinaryIO, parts: Iterator[NDArray[Any]], forget: Callable[[], None]
) -> list[int | str | list[int]]:
    """The parts end to end → their entry of the index."""
    begin, rows = file.tell(), 0
    for part in parts:
        file.write(part.data)
        rows += len(part)
        dtype, row = part.dtype.name, part.shape[1:]
        forget()
    return [begin, file.tell() - begin, dtype, [rows, *row]]


def _sums(raw: NDArray[np.uint8]) -> list[int]:
    """What every megabyte adds up to: one flipped bit changes one sum by a power of two."""
    words = raw.view(np.uint64)
    parts = (words[at : at + _SUMMED] for at in range(0, len(words), _SUMMED))
    return [int(part.sum(dtype=np.uint64)) for part in parts]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _pad(file: BinaryIO) -> None:
    file.write(b"\0" * (-file.tell() % _ALIGNMENT))


def _rename(scratch: Path, place: Path) -> None:
    """Give the folder its name; another process may have been first."""
    try:
        scratch.rename(place)
    except OSError:
        if not place.is_dir():
            raise


def _mapped(place: Path, recipes: Mapping[External, Recipe]) -> Packed | None:
    """What is in the cache folder, or None when it is not there, or is not what was written."""
    try:
        digest, text = (place / "index.json").read_text().split("\n", 1)
        raw = np.memmap(place / "weights.bin", np.uint8, mode="r")
        index = json.loads(text)
        if digest != _digest(text) or index["sums"] != _sums(raw):
            return None
        return Packed(dict(_arrays(index["arrays"], raw, recipes)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _arrays(
    index: Mapping[str, Any], raw: NDArray[np.uint8], recipes: Mapping[External, Recipe]
) -> Iterator[tuple[External, NDArray[Any]]]:
    for external in recipes:
        offset, size, dtype, shape = index[external.name]
        if not 0 <= offset <= offset + size <= len(raw) or offset % _ALIGNMENT:
            raise ValueError("the index and the weights disagree")
        part = np.frombuffer(raw, np.dtype(dtype), math.prod(shape), offset)
        yield external, part.reshape(shape)
