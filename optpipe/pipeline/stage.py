"""The stages of a pipeline, in the order they run."""

from __future__ import annotations

from enum import IntEnum


class Stage(IntEnum):
    """What a graph has been through; the verifier allows other operations at each."""

    TRACE = 0
    CLEAN = 1
    FUSE = 2
    QUANT = 3
    CACHE = 4
    LOWER = 5
