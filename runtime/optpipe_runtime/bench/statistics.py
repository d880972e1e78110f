"""From records to metrics. Percentiles interpolate between the two nearest values, as numpy does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from .record import Record
from .slo import Slo

PERCENTILES = (50, 90, 99)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` percent of the sorted values are.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50)
    2.5
    """
    place = (len(ordered) - 1) * share / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(seconds: Iterable[float]) -> dict[str, float | None]:
    """Mean and percentiles in milliseconds; None for each when there is no value."""
    ordered = sorted(1000 * it for it in seconds)
    names = {f"p{share}": share for share in PERCENTILES}
    if not ordered:
        return dict.fromkeys(["mean", *names])
    found: dict[str, float | None] = {"mean": math.fsum(ordered) / len(ordered)}
    return found | {name: percentile(ordered, share) for name, share in names.items()}


def measure(records: Sequence[Record], seconds: float, slo: Slo) -> dict[str, Any]:
    """The metrics of a run. Only requests that were answered count, but for those that say how many were not.

    Args:
        seconds: that the run took, from its beginning to the end of its last request.
    """
    good = [it for it in records if it.ok]
    prompt = [it.prompt_tokens for it in good]
    known = [it for it in prompt if it is not None]
    output = sum(it.output_tokens for it in good)
    return {
        "ttft_ms": summary(it.ttft for it in good),
        "tpot_ms": summary(it.tpot for it in good if it.tpot is not None),
        "itl_ms": summary(gap for it in good for gap in it.gaps),
        "e2e_ms": summary(it.e2e for it in good),
        "prompt_tokens_per_s": sum(known) / seconds if len(known) == len(prompt) and known else None,
        "output_tokens_per_s": output / seconds,
        "requests_per_s": len(good) / seconds,
        "goodput_rps": sum(slo.met(it) for it in records) / seconds,
        "seconds": seconds,
        "requests": _counts(records),
        "tokens": {
            "prompt": sum(known) if len(known) == len(prompt) else None,
            "output": output,
            "output_asked": sum(it.asked for it in good),
            "counted_by": sorted({it.counted_by for it in good}),
        },
        "late_ms": summary(it.sent - it.arrival for it in records),
    }


def _counts(records: Sequence[Record]) -> dict[str, Any]:
    errors = Counter(it.error for it in records if it.error is not None)
    failed = sum(errors.values())
    return {
        "sent": len(records),
        "answered": len(records) - failed,
        "failed": failed,
        "errors": dict(errors.most_common(10)),
    }
