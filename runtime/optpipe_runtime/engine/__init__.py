"""The engine: requests in, text out, over any target's executor.

    engine.py    what callers see          loop.py     the one thread that plans, runs, samples and tells
    config.py    every setting             batch.py    a step's plan as the executor's arrays
    outputs.py   what comes out            text.py     tokens to text, with stop strings held back
    delivery.py  to threads and event loops, without losing or hoarding
    memory.py    what fits on the machine  stats.py    numbers for people and for /metrics

Nothing here imports torch: what a target needs, the target imports.
"""

from __future__ import annotations

from .config import EngineConfig
from .engine import Engine
from .outputs import Completion, Delta, RequestOutput, Timing, Usage

__all__ = ["Completion", "Delta", "Engine", "EngineConfig", "RequestOutput", "Timing", "Usage"]
