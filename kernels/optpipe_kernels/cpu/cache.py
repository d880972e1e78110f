"""How many bytes a block of the paged cache takes in the layout of ``native/src/ops/kv_cache.h``."""

from __future__ import annotations

CACHE_DTYPES = ("f32", "bf16", "i8")
_ITEM = {"f32": 4, "bf16": 2, "i8": 1}
_TOGETHER = {"f32": 1, "bf16": 2, "i8": 4}  # numbers that meet in one product


def cache_bytes(block: int, heads: int, width: int, dtype: str, *, keys: bool) -> int:
    """Bytes of one block of one layer's keys, or of its values.

    Args:
        block: tokens a block.
        heads: H_kv.
        width: D.
        dtype: one of ``CACHE_DTYPES``.
        keys: keys lie column by column, values row by row; each pads its rows, keys of few bits
            their columns too.

    >>> cache_bytes(16, 3, 64, "f32", keys=True), cache_bytes(16, 3, 64, "i8", keys=False)
    (12288, 3264)
    """
    slots = _up(block, 16)
    columns = _up(width, _TOGETHER[dtype] if keys else 16)
    head = slots * columns * _ITEM[dtype] + (slots * 4 if dtype == "i8" else 0)
    return _up(head * heads, 64)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step
