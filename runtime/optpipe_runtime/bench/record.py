"""What was seen of one request. Times are seconds of ``time.perf_counter()``."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

CountedBy = Literal["usage", "chunks", "engine"]


@dataclass(slots=True)
class Record:
    """One request.

    Attributes:
        arrival: when it was planned to come; in a closed loop, when its turn came.
        sent: when the generator sent it.
        chunks: when each chunk with new tokens was received.
        last: when the last token was received; None when there is none.
        end: when the request was over, well or not.
        prompt_tokens, output_tokens: as counted by ``counted_by``; prompt tokens are None where nobody says.
        counted_by: the server's usage, the number of chunks, or the engine.
        made: when the engine had the first and the last token, where it says so; a reader that got all of
            them in one chunk has nothing else to tell them apart.
        asked: output tokens that were asked for.
        error: why it failed; None when it did not.
    """

    arrival: float
    sent: float = 0.0
    chunks: list[float] = field(default_factory=list)
    last: float | None = None
    end: float = 0.0
    prompt_tokens: int | None = None
    output_tokens: int = 0
    counted_by: CountedBy = "engine"
    made: tuple[float, float] | None = None
    asked: int = 0
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it was answered to the end."""
        return self.error is None

    @property
    def ttft(self) -> float:
        """Seconds from arrival to the first token."""
        return self.chunks[0] - self.arrival

    @property
    def tpot(self) -> float | None:
        """Seconds a token behind the first; None when there is only one."""
        if self.output_tokens < 2:
            return None
        return (self._last - self.chunks[0]) / (self.output_tokens - 1)

    @property
    def e2e(self) -> float:
        """Seconds from arrival to the last token."""
        return self._last - self.arrival

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks."""
        return [b - a for a, b in pairwise(self.chunks)]

    @property
    def _last(self) -> float:
        return self.chunks[-1] if self.last is None else self.last
