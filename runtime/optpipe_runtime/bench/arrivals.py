"""When requests arrive: planned before the run, so that a slow server cannot slow its own measurement down.

With planned times a request that had to wait for the generator counts that wait (no coordinated omission).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from optpipe.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """A plan of arrivals.

    Attributes:
        rate: requests a second, on average, at exponential distances (a Poisson process); infinite when all
            come at the beginning; None for a closed loop, where a request comes when another has ended.
        burst: requests that come at the same moment; the distances grow with it, so the rate stays.
        concurrency: requests at a time, at most; None for any number. With a rate, what waits for its turn
            has arrived all the same.
    """

    rate: float | None = math.inf
    burst: int = 1
    concurrency: int | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and not self.rate > 0:
            raise RequestError(f"The rate must be more than 0 requests a second, got {self.rate}.")
        if self.burst < 1:
            raise RequestError(f"A burst must have at least one request, got {self.burst}.")
        if self.concurrency is not None and self.concurrency < 1:
            raise RequestError(f"The concurrency must be at least 1, got {self.concurrency}.")
        if self.rate is None and self.concurrency is None:
            raise RequestError("A closed loop needs a concurrency.")

    def plan(self, count: int, source: random.Random) -> list[float | None]:
        """Seconds after the beginning for each of ``count`` requests, in order; None in a closed loop."""
        if self.rate is None:
            return [None] * count
        now, planned = 0.0, list[float | None]()
        while len(planned) < count:
            planned += [now] * self.burst
            now += source.expovariate(self.rate / self.burst) if math.isfinite(self.rate) else 0.0
        return planned[:count]

    def __str__(self) -> str:
        within = "" if self.concurrency is None else f", at most {self.concurrency} at once"
        if self.rate is None:
            return f"closed loop, {self.concurrency} at once"
        if math.isinf(self.rate):
            return f"all at the beginning{within}"
        bursts = "" if self.burst == 1 else f" in bursts of {self.burst}"
        return f"Poisson, {self.rate:g} a second{bursts}{within}"
