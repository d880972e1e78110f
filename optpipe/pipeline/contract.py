"""What a pass promises about the numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lossless:
    """Logits stay within 4× of the source model's own float32 noise on the same tokens."""

    def __str__(self) -> str:
        return "lossless"


@dataclass(frozen=True)
class Lossy:
    """Mean KL(source ‖ rewritten) over tokens of text stays under ``max_kld`` nats."""

    max_kld: float

    def __str__(self) -> str:
        return f"lossy, KL ≤ {self.max_kld:g}"


Contract = Lossless | Lossy
