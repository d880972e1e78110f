"""What this machine can do at most, measured with the kernels' instruction set on their threads."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from .library import Library, Operand, Pool

_LANES = {"avx512bf16": 16, "avx512vnni": 16, "avxvnni": 8, "avx2": 8, "scalar": 4}  # floats a vector
_SUMS = 12  # of machine.h
_READ = 128 << 20  # bytes: more than caches hold
_REPEATS = 400_000
_TIMES = 3


@dataclass(frozen=True)
class Limits:
    """Of all threads together.

    Attributes:
        bytes: read from memory a second.
        whole: operations on 8-bit numbers a second.
        real: operations on float32 numbers a second.
    """

    bytes: float
    whole: float
    real: float


def measure(library: Library, pool: Pool) -> Limits:
    """Measure; about half a second."""
    out = np.zeros(64, np.float32)
    lanes = _LANES[library.isa] * _SUMS * _REPEATS * pool.threads
    return Limits(
        _READ / _best(library, pool, "machine_read", [np.ones(_READ // 4, np.float32), out]),
        8 * lanes / _best(library, pool, "machine_dots", [out], _REPEATS),
        2 * lanes / _best(library, pool, "machine_fmas", [out], _REPEATS),
    )


def _best(library: Library, pool: Pool, kernel: str, operands: list[Operand], *ints: int) -> float:
    seconds = []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        library.call(kernel, operands, ints, pool=pool)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
