"""The engine: requests in, text out, over any target's executor.

    engine.py      what callers see
    parts.py       how an engine is put together, and taken apart
    config.py      every setting
    outputs.py     what comes out: deltas, completions, usage
    submission.py  a request as its caller holds it
    gate.py        who is in, and whether there is room
    intake.py      from what is asked to sequences; beside the engine's thread
    loop.py        the engine's thread: takes in, plans, runs, samples, tells
    request.py     a request inside the engine
    deadlines.py   when requests are given up
    batch.py       a step's plan as the executor's arrays
    runner.py      one step of the executor
    text.py        tokens to text, with stop strings held back
    delivery.py    to threads and event loops, without losing or hoarding
    drafting.py    the proposer that the config names
    memory.py      what fits on the machine
    stats.py       numbers for people and for /metrics
    whole_sequences.py  artifacts without a cache

Nothing here imports torch: what a target needs, the target imports.
"""

from __future__ import annotations

import logging

from .config import EngineConfig
from .engine import Engine
from .outputs import Completion, Delta, RequestOutput, Timing, Usage

__all__ = ["Completion", "Delta", "Engine", "EngineConfig", "RequestOutput", "Timing", "Usage"]

# Whoever embeds the engine decides where its log goes; without a word from them it goes nowhere.
logging.getLogger("optpipe").addHandler(logging.NullHandler())
