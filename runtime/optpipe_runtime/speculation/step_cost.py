"""What a step costs: seconds as a function of the tokens in it, learnt from steps that ran."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from statistics import median_low

EXACT = 16  # step sizes below this are kept apart; above, four to each power of two
SAMPLES = 7  # newest ones that a size remembers; their median shrugs off a hiccup of the machine


class StepCost:
    """Medians of recent steps by size, with straight lines between them.

    Beyond the largest size that was seen, the last line goes on up to twice that size; farther out, as below
    the smallest, a token costs what it costs at the edge: the least favourable guess for a draft.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []  # classes seen, rising
        self._samples: list[deque[tuple[int, float]]] = []
        self._tokens: list[float] = []  # mean tokens of each class
        self._seconds: list[float] = []  # median seconds of each class

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from a step."""
        size = size_class(tokens)
        at = bisect_left(self._sizes, size)
        if at == len(self._sizes) or self._sizes[at] != size:
            self._sizes.insert(at, size)
            self._samples.insert(at, deque(maxlen=SAMPLES))
            self._tokens.insert(at, 0.0)
            self._seconds.insert(at, 0.0)
        samples = self._samples[at]
        samples.append((tokens, seconds))
        self._tokens[at] = sum(count for count, _ in samples) / len(samples)
        self._seconds[at] = median_low([taken for _, taken in samples])

    def seconds(self, tokens: int) -> float | None:
        """Of a step of that many tokens; None before the first observation."""
        known, taken = self._tokens, self._seconds
        if not known:
            return None
        at = bisect_left(known, tokens)
        if at == 0:
            return taken[0] * tokens / known[0]
        if at < len(known):
            share = (tokens - known[at - 1]) / (known[at] - known[at - 1])
            return taken[at - 1] + share * (taken[at] - taken[at - 1])
        return self._beyond(tokens)

    def _beyond(self, tokens: int) -> float:
        """Of a step larger than all that were seen."""
        edge, taken = self._tokens[-1], self._seconds[-1]
        if len(self._tokens) == 1:
            return taken * tokens / edge
        slope = max(0.0, (taken - self._seconds[-2]) / (edge - self._tokens[-2]))
        reach = min(float(tokens), 2 * edge)
        taken += slope * (reach - edge)
        return taken * tokens / reach


def size_class(tokens: int) -> int:
    """The class of a step size: itself when small, else its first three binary digits and their place.

    >>> [size_class(n) for n in (1, 15, 16, 19, 20, 64, 79, 80)]
    [1, 15, 16, 16, 17, 24, 24, 25]
    """
    if tokens < EXACT:
        return tokens
    places = tokens.bit_length() - 5
    return EXACT + 4 * places + (tokens >> (places + 2)) - 4
