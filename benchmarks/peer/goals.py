"""What a cell has to reach: a multiple of the best peer, or a share of what matrix products alone allow."""

from __future__ import annotations

from dataclasses import dataclass

OF_BOUND = 0.75
SMOLLM2_B1 = 0.60  # of its matrix products, whatever peers do
RATIOS = {
    "smollm2": {"prompt 512": 1.6, "b=1": 2.2, "b=4": 3.0, "b=16": 2.5},
    "gemma": {"prompt 512": 1.6, "b=1": 1.8, "b=4": 2.0, "b=16": 2.0},
    "llama-1b": {"prompt 512": 1.6, "b=1": 1.2, "b=4": 1.5, "b=16": 1.5},
}


@dataclass(frozen=True)
class Goal:
    """Of one cell; rates in tokens a second.

    Attributes:
        ratio: of the best peer's rate that is wanted.
        peer: the best peer's rate.
        bound: what matrix products alone allow.
        least: a share of the bound that is wanted in any case.
    """

    ratio: float
    peer: float
    bound: float
    least: float = 0.0

    @property
    def rate(self) -> float:
        """What has to be reached."""
        return max(min(self.ratio * self.peer, OF_BOUND * self.bound), self.least * self.bound)

    @property
    def why(self) -> str:
        """Which of the three it is."""
        if self.rate == self.ratio * self.peer:
            return f"{self.ratio:g} times the peer"
        return f"{self.least if self.rate == self.least * self.bound else OF_BOUND:.0%} of bound"

    def reached(self, ours: float) -> bool:
        """Whether a rate is enough."""
        return ours >= self.rate


def goal(model: str, cell: str, peer: float, bound: float) -> Goal:
    """The goal of a cell, given the best peer's rate and the bound that were measured with it."""
    least = SMOLLM2_B1 if (model, cell) == ("smollm2", "b=1") else 0.0
    return Goal(RATIOS[model][cell], peer, bound, least)
