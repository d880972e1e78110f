"""How often drafts are kept, by their position in the draft."""

from __future__ import annotations

PRIOR = 0.5  # of a first draft's being kept, before anything is known
PRIOR_WEIGHT = 1.0  # observations that the prior counts for


class Acceptance:
    """For each position: the share of drafts that were kept, among those whose predecessors all were.

    Args:
        positions: how many.
        memory: what an observation still counts after the next one at its position; old ones fade.
        parent: whose rates are the prior, and which learns along; None for the root.
    """

    __slots__ = ("_gains", "_hits", "_memory", "_parent", "_tries")

    def __init__(self, positions: int, *, memory: float, parent: Acceptance | None = None) -> None:
        self._hits = [0.0] * positions
        self._tries = [0.0] * positions
        self._memory = memory
        self._parent = parent
        self._gains: tuple[float, ...] | None = None

    def record(self, position: int, kept: bool) -> None:
        """Learn that the draft at a position was checked, all before it having been kept."""
        if position >= len(self._hits):
            return
        self._hits[position] = self._hits[position] * self._memory + kept
        self._tries[position] = self._tries[position] * self._memory + 1.0
        self._gains = None
        if self._parent is not None:
            self._parent.record(position, kept)

    def gains(self) -> tuple[float, ...]:
        """What each draft is expected to add, in tokens: the chance that it and all before it are kept."""
        if self._gains is None:
            kept, gains = 1.0, []
            for rate in self._rates():
                kept *= rate
                gains.append(kept)
            self._gains = tuple(gains)
        return self._gains

    def _rates(self) -> list[float]:
        """Chance of being kept by position; an unknown position of the root is as the one before it."""
        priors = self._parent._rates() if self._parent is not None else None
        rates: list[float] = []
        for position, (hits, tries) in enumerate(zip(self._hits, self._tries, strict=True)):
            prior = priors[position] if priors is not None else rates[-1] if rates else PRIOR
            rates.append((hits + PRIOR_WEIGHT * prior) / (tries + PRIOR_WEIGHT))
        return rates
