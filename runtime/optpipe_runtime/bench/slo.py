"""Limits that a request must meet to count as good: ``ttft=200,tpot=50`` in milliseconds, or with a unit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from optpipe.errors import RequestError, nearest

from .record import Record

NAMES = ("ttft", "tpot", "e2e")
_UNITS = {"ms": 1.0, "s": 1000.0, "": 1.0}


@dataclass(frozen=True)
class Slo:
    """Limits in milliseconds; None where there is none."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def met(self, record: Record) -> bool:
        """Whether a request was answered within every limit; a single token has no TPOT to exceed."""
        if not record.ok:
            return False
        for name in NAMES:
            limit, value = getattr(self, name), getattr(record, name)
            if limit is not None and value is not None and value * 1000 > limit:
                return False
        return True

    def to_json(self) -> dict[str, float]:
        """The limits that are stated."""
        return {f"{name}_ms": getattr(self, name) for name in NAMES if getattr(self, name) is not None}


def parse_slo(text: str) -> Slo:
    """Limits as they are written.

    >>> parse_slo("ttft=0.2s, tpot=50")
    Slo(ttft=200.0, tpot=50.0, e2e=None)

    Raises:
        RequestError: it is not of this form, or names a limit twice.
    """
    found: dict[str, float] = {}
    for part in filter(None, (it.strip() for it in text.split(","))):
        name, _, value = (it.strip() for it in part.partition("="))
        if name not in NAMES:
            raise RequestError(
                f"There is no limit named '{name[:40]}'.",
                hint=nearest(name, NAMES) or f"known: {', '.join(NAMES)}",
            )
        if name in found:
            raise RequestError(f"The limit '{name}' is given twice.")
        found[name] = _milliseconds(name, value.lower())
    return Slo(**found)


def _milliseconds(name: str, value: str) -> float:
    number = value.rstrip("ms")
    try:
        found = float(number) * _UNITS[value[len(number) :]]
    except (ValueError, KeyError):
        found = math.nan
    if not (math.isfinite(found) and found > 0):
        raise RequestError(
            f"The limit '{name}' must be a time, got '{value[:40]}'.", hint="examples: ttft=200, ttft=0.2s"
        )
    return found
