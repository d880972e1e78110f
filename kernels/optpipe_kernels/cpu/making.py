"""A weight of a plan from those of an artifact, as its recipe says: whole, or piece by piece.

Pieces are there for the head of a vocabulary of 262,144 and for stacked experts, which fill gigabytes: read,
packed and written a slab of rows at a time, they are never in memory whole, nor twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .library import Pool
from .lowering.recipe import Experts, Joined, Linear, Matrix, Plain, Recipe
from .pack import TILE, Bytes, aligned_zeros, pack
from .pack import Matrix as Stored

Read = Callable[[str], NDArray[Any]]
"""A weight of the artifact by name, as it is stored; bfloat16 as uint16."""

SLAB = 16 << 20
"""Bytes of a piece, about."""

_NUMPY = {"f32": "float32", "bf16": "uint16", "f16": "float16", "i64": "int64", "i32": "int32", "i8": "int8"}
_NUMPY |= {"u8": "uint8", "bool": "bool"}


def make(recipe: Recipe, read: Read, pool: Pool | None = None) -> NDArray[Any]:
    """One weight of the plan, contiguous."""
    if isinstance(recipe, Plain):
        return _as(read(recipe.name), recipe.dtype)
    if isinstance(recipe, Joined):
        parts = [np.zeros(size, np.float32) if name is None else read(name) for name, size in recipe.parts]
        return np.concatenate([_as(part, "f32") for part in parts])
    if isinstance(recipe, Linear):
        return _linear(recipe, read, pool)
    blob = aligned_zeros(recipe.form.bytes * recipe.experts)
    for _ in _experts(recipe, read, pool, blob):
        pass
    return blob


def pieces(recipe: Recipe, read: Read, pool: Pool | None = None) -> Iterator[NDArray[Any]]:
    """What ``make`` makes, in parts along its first dimension; one is to be used before the next is made."""
    if isinstance(recipe, Plain):
        yield from _rows(recipe, read)
    elif isinstance(recipe, Experts):
        yield from _experts(recipe, read, pool, None)
    elif isinstance(recipe, Linear) and len(recipe.parts) == 1 and not recipe.gated:
        yield from _slabs(recipe, read, pool)
    else:
        yield make(recipe, read, pool)


def _rows(recipe: Plain, read: Read) -> Iterator[NDArray[Any]]:
    whole = read(recipe.name)
    if whole.nbytes <= SLAB:
        yield _as(whole, recipe.dtype)
        return
    step = max(1, SLAB * len(whole) // whole.nbytes)
    for begin in range(0, len(whole), step):
        yield _as(whole[begin : begin + step], recipe.dtype)


def _experts(recipe: Experts, read: Read, pool: Pool | None, blob: Bytes | None) -> Iterator[Bytes]:
    """Each expert's bytes, in ``blob`` where there is one."""
    each = recipe.form.bytes
    stacks = _arrays(recipe.matrix, read)
    for e in range(recipe.experts):
        out = aligned_zeros(each) if blob is None else blob[e * each : (e + 1) * each]
        matrix = _stored(
            [None if it is None else it[e] for it in stacks], recipe.bits, recipe.matrix.transposed
        )
        yield pack([matrix], recipe.inputs, recipe.bits, recipe.group, out=out, pool=pool)


def _slabs(recipe: Linear, read: Read, pool: Pool | None) -> Iterator[Bytes]:
    """A blob is a head and tiles of 16 rows; those of a slab of rows, packed alone, are the same."""
    (part,), form = recipe.parts, recipe.form
    step = max(1, SLAB // form.tile_bytes) * TILE
    if step >= part.rows:
        yield make(recipe, read, pool)
        return
    arrays = _arrays(part, read)
    yield form.head()
    for begin in range(0, part.rows, step):
        rows = slice(begin, begin + step)
        some = [None if it is None else it[:, rows] if part.transposed else it[rows] for it in arrays]
        slab = _stored(some, recipe.bits, part.transposed)
        yield pack([slab], recipe.inputs, recipe.bits, recipe.group, pool=pool)[len(form.head()) :]


def _linear(recipe: Linear, read: Read, pool: Pool | None) -> Bytes:
    stored = [_stored(_arrays(part, read), recipe.bits, part.transposed) for part in recipe.parts]
    if recipe.gated and len(stored) == 1:
        stored = _halves(stored[0])
    return pack(stored, recipe.inputs, recipe.bits, recipe.group, gated=recipe.gated, pool=pool)


def _arrays(part: Matrix, read: Read) -> list[NDArray[Any] | None]:
    return [None if name is None else read(name) for name in part.names]


def _stored(arrays: list[NDArray[Any] | None], bits: int, transposed: bool) -> Stored:
    weight, *grid = arrays
    assert weight is not None, "a matrix has a weight"
    if bits in (16, 32):
        weight = _as(weight.T if transposed else weight, "bf16" if bits == 16 else "f32")
    return Stored(weight, *grid)


def _halves(whole: Stored) -> list[Stored]:
    half = whole.weight.shape[0] // 2
    return [
        Stored(*(None if it is None else it[part] for it in (whole.weight, whole.scale, whole.minimum)))  # type: ignore[arg-type]
        for part in (slice(0, half), slice(half, None))
    ]


def _as(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """In another dtype; bfloat16 travels as uint16 and widens exactly."""
    if array.dtype == np.uint16 and dtype != "bf16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(array, dtype=_NUMPY[dtype])
