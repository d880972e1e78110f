"""The measured runs: warm up, then measure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .arrivals import Arrivals
from .load import Client, Load, run_load
from .record import Record
from .workload import Request, Workload

Progress = Callable[[int, int], None]
"""Told how many of how many requests have ended."""


@dataclass
class Batches:
    """What came of batches that ran one after the other.

    Attributes:
        load: all of them, the time between them left out.
        prompt_rates: a batch's prompt tokens over the seconds until each had its first token.
        decode_rates: a batch's tokens over the seconds from then on.
    """

    load: Load = field(default_factory=lambda: Load([], 0.0, 0.0))
    prompt_rates: list[float] = field(default_factory=list)
    decode_rates: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Medians over the batches."""
        return {
            "prefill_tokens_per_s": statistics.median(self.prompt_rates) if self.prompt_rates else None,
            "decode_tokens_per_s": statistics.median(self.decode_rates) if self.decode_rates else None,
        }

    def add(self, load: Load) -> None:
        """One more batch."""
        self.load += load
        good = [it for it in load.records if it.ok]
        if not good or len(good) < len(load.records):
            return
        begin, ready = min(it.arrival for it in good), max(it.chunks[0] for it in good)
        end = max(it.chunks[-1] for it in good)
        behind = sum(_tokens_after(it, ready) for it in good)
        made = [it.made for it in good if it.made is not None]
        if end == ready and len(made) == len(good):  # the reader was so late that it got all tokens at once
            ready, end = max(first for first, _ in made), max(last for _, last in made)
            behind = sum(_tokens_made_after(it, ready) for it in good)
        self.prompt_rates.append(sum(it.prompt_tokens or 0 for it in good) / (ready - begin))
        if end > ready:
            self.decode_rates.append(behind / (end - ready))


def _tokens_made_after(record: Record, time: float) -> float:
    """Tokens that were made after a time, when those behind the first came evenly."""
    assert record.made is not None, f"the engine does not say when it made the tokens of {record}"
    first, last = record.made
    return (record.output_tokens - 1) * (last - time) / (last - first) if last > time else 0.0


def _tokens_after(record: Record, time: float) -> float:
    """Tokens received after a time, when each of the chunks behind the first holds equally many."""
    behind = len(record.chunks) - 1
    later = sum(it > time for it in record.chunks[1:])
    return 0.0 if behind == 0 else (record.output_tokens - 1) * later / behind


async def run_batches(
    client: Client,
    workload: Workload,
    *,
    size: int,
    repeats: int,
    warmup: int,
    on_end: Progress = lambda ended, total: None,
) -> Batches:
    """Batches whose requests come together, one after the other; the first ``warmup`` do not count."""
    found = Batches()
    for i in range(warmup + repeats):
        requests = workload.requests(size, Arrivals(rate=math.inf), name=f"batch {i}")
        load = await run_load(client, requests)
        if i >= warmup:
            found.add(load)
        on_end(i + 1, warmup + repeats)
    return found


async def run_requests(
    client: Client,
    requests: Sequence[Request],
    warm: Sequence[Request],
    *,
    concurrency: int | None,
    timeout: float,
    on_end: Progress = lambda ended, total: None,
) -> Load:
    """Requests at their times, after others that do not count; those are sent four at a time."""
    total = len(warm) + len(requests)
    await run_load(client, warm, concurrency=4, timeout=timeout, on_end=lambda n: on_end(n, total))
    return await run_load(
        client,
        requests,
        concurrency=concurrency,
        timeout=timeout,
        on_end=lambda n: on_end(len(warm) + n, total),
    )
