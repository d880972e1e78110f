"""What this machine can do at most, measured with the kernels' instruction set on their threads."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .library import Library, Operand, Pool

_LANES = {"avx512bf16": 16, "avx512vnni": 16, "avxvnni": 8, "avx2": 8, "scalar": 4}  # floats a vector
_SUMS = 12  # of machine.h
_READ = 128 << 20  # bytes: more than most caches hold
_MOST_READ = 512 << 20
_REPEATS = 400_000
_TIMES = 3
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Limits:
    """Of all threads together.

    Attributes:
        memory: bytes read from memory a second.
        cache: bytes read from the last-level cache a second; memory's where the system does not say its size.
        cache_bytes: how many the last-level cache holds; 0 where the system does not say.
        operations: on numbers of each kind a second: "int8", "bf16", "f32".
    """

    memory: float
    cache: float
    cache_bytes: int
    operations: dict[str, float]


def measure(library: Library, pool: Pool) -> Limits:
    """Measure; about a second."""
    out = np.zeros(64, np.float32)
    lanes = _LANES[library.isa] * _SUMS * _REPEATS * pool.threads
    held = last_level_cache()

    def read(size: int, times: int = _TIMES) -> float:
        array = np.ones(size // 4, np.float32)
        return size / _best(library, pool, "machine_read", [array, out], times=times)

    def operations(kernel: str, each: int) -> float:
        return each * lanes / _best(library, pool, kernel, [out], _REPEATS)

    memory = read(min(max(_READ, 4 * held), _MOST_READ))
    return Limits(
        memory,
        max(memory, read(held * 3 // 8 // 64 * 64, 30)) if held else memory,  # past the caches of each core
        held,
        {
            "int8": operations("machine_dots", 8),
            "bf16": operations("machine_pairs", 4),
            "f32": operations("machine_fmas", 2),
        },
    )


def last_level_cache(folder: Path = _CACHES) -> int:
    """Bytes that the largest cache of the first processor holds; 0 where the system does not say."""
    sizes = [_bytes(it) for it in folder.glob("index*/size")]
    return max(sizes, default=0)


def _bytes(file: Path) -> int:
    try:
        text = file.read_text().strip()
        return int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
    except (OSError, ValueError):
        return 0


def _best(
    library: Library, pool: Pool, kernel: str, operands: list[Operand], *ints: int, times: int = _TIMES
) -> float:
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        library.call(kernel, operands, ints, pool=pool)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
