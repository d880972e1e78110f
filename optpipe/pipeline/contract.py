"""What a pass promises about the numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Top-1 disagreement follows the divergence: 0.52 to 0.58 · √KL for SmolLM2-135M with KL from 0.003
# to 0.26 nats, 0.42 · √KL for Gemma-3-270M. The promise leaves room, and a little for ties.
DISAGREEMENT = 0.75
TIES = 0.005


@dataclass(frozen=True)
class Lossless:
    """Logits stay within 4× of the source model's own float32 noise on the same tokens."""

    def __str__(self) -> str:
        return "lossless"


@dataclass(frozen=True)
class Lossy:
    """The rewritten model predicts text nearly as its source does.

    Attributes:
        max_kld: bounds mean KL(source ‖ rewritten) over tokens of text, nats.
        min_top1: bounds the share of tokens that both models rank first alike; None for what such a
            divergence usually means.
    """

    max_kld: float
    min_top1: float | None = None

    @property
    def top1(self) -> float:
        """The bound on top-1 agreement, given or following from ``max_kld``."""
        return usual_top1(self.max_kld) if self.min_top1 is None else self.min_top1

    def __str__(self) -> str:
        return f"lossy, KL ≤ {self.max_kld:g}, top-1 ≥ {self.top1:.1%}"


def usual_top1(max_kld: float) -> float:
    """The least top-1 agreement that goes with a divergence up to ``max_kld`` nats.

    >>> [round(usual_top1(kld), 3) for kld in (0.0, 0.02, 0.25, 9.0)]
    [0.995, 0.889, 0.62, 0.0]
    """
    return max(0.0, 1 - TIES - DISAGREEMENT * math.sqrt(max_kld))


Contract = Lossless | Lossy
