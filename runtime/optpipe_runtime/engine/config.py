"""How an engine runs: its limits, its memory and its habits. Everything a person may turn is here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from optpipe.errors import RequestError

Policy = Literal["fcfs", "priority"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The settings of an engine.

    Attributes:
        max_num_seqs: sequences that run at the same time, at most.
        max_num_batched_tokens: the token budget of a step. A long prompt is computed in chunks of it; a
            smaller budget makes steadier steps, a larger one faster prompts.
        long_prefill_token_threshold: tokens of one prompt a step while another prompt is behind it, so that
            a short request need not wait for the end of a long one; 0 is no cap. None caps prompts with more
            to go than the whole budget, at half of what is left of it.
        max_waiting: sequences that may wait for their turn; one more is refused.
        max_context: positions a sequence may have; None takes the model's own limit.
        policy: who is admitted first: "fcfs" (by arrival) or "priority" (lower number first).
        prefix_caching: find the beginnings of prompts again in the cache.
        kv_memory: for the cache: bytes (an int), or a share of the free memory (a float up to 1).
        num_blocks: of the cache, instead of ``kv_memory``; None works it out.
        kv_dtype: how the cache stores numbers, where the target has a choice; None is its default.
        watermark: share of the blocks that stays free when a sequence is admitted.
        request_timeout: seconds from arrival after which a request is given up; None never does.
        stall_timeout: seconds without progress, with work to do, after which the engine is unhealthy.
        max_failures: failed steps in a row after which the engine is unhealthy.
        speculation: the proposer of draft tokens: "none", "ngram", "suffix", "draft", "layers".
        draft_model: with "draft": the folder of an artifact of the same vocabulary.
        draft_layers: with "layers": how many of the model's first layers draft; None takes half of them.
        max_draft_tokens: draft tokens a sequence and step, at most.
        seed: from which requests without a seed get theirs; None takes a random one.
        sampler_threads: threads that share a step's sampling.
        intake_threads: threads that turn text into tokens and compile grammars.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    long_prefill_token_threshold: int | None = None
    max_waiting: int = 1024
    max_context: int | None = None
    policy: Policy = "fcfs"
    prefix_caching: bool = True
    kv_memory: int | float = 0.5
    num_blocks: int | None = None
    kv_dtype: str | None = None
    watermark: float = 0.01
    request_timeout: float | None = 600.0
    stall_timeout: float = 4.0
    max_failures: int = 3
    speculation: str = "none"
    draft_model: str | None = None
    draft_layers: int | None = None
    max_draft_tokens: int = 8
    seed: int | None = None
    sampler_threads: int = 2
    intake_threads: int = 2

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_failures"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("sampler_threads", "intake_threads", "max_draft_tokens"):
            self._check(name, 1 <= getattr(self, name) <= 64, "from 1 to 64")
        for name in ("max_context", "num_blocks", "draft_layers"):
            self._check(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        threshold = self.long_prefill_token_threshold
        self._check("long_prefill_token_threshold", threshold is None or threshold >= 0, "at least 0")
        self._check("max_waiting", self.max_waiting >= 0, "at least 0")
        self._check("policy", self.policy in ("fcfs", "priority"), "'fcfs' or 'priority'")
        self._check("watermark", 0 <= self.watermark < 1, "at least 0 and under 1")
        for name in ("request_timeout", "stall_timeout"):
            value = getattr(self, name)
            self._check(name, value is None or (math.isfinite(value) and value > 0), "more than 0 seconds")
        if isinstance(self.kv_memory, float):
            self._check("kv_memory", 0 < self.kv_memory <= 1, "bytes (an int), or a share from 0 to 1")
        else:
            self._check("kv_memory", self.kv_memory > 0, "more than 0 bytes")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            value: Any = getattr(self, name)
            raise RequestError(f"The engine's {name} must be {expected}, got {value!r}.")


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_memory(text: str) -> int | float:
    """Memory as people write it: bytes with a unit, or a share.

    >>> parse_memory("2GiB"), parse_memory("512M"), parse_memory("40%"), parse_memory("0.5")
    (2147483648, 512000000, 0.4, 0.5)

    Raises:
        RequestError: it is neither.
    """
    word = text.strip().lower()
    try:
        if word.endswith("%"):
            return float(word[:-1]) / 100
        number = word.rstrip("bkmgi")
        unit = word[len(number) :].removesuffix("b")
        if "." in number and not word[len(number) :]:
            return float(number)
        return int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise RequestError(
            f"'{text[:40]}' is no amount of memory.", hint="examples: 2GiB, 512M, 40%, 0.4"
        ) from None
