"""How many tokens a request has: fixed, uniform, or lognormal as chat traffic is.

>>> lengths = parse_lengths("64-128")
>>> all(64 <= lengths.draw(random.Random(seed)) <= 128 for seed in range(100))
True
>>> str(parse_lengths("512")), str(parse_lengths("lognormal:80:1.2:2048"))
('512', 'lognormal:80:1.2:2048')
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal, Protocol

from optpipe.errors import RequestError

LONGEST = 1 << 20

# Chat traffic: the lognormals of greatest likelihood (median = exp of the mean, spread = standard deviation,
# of the logarithms) for the 19,366 conversation requests of the Azure LLM inference trace of November 2023:
# ContextTokens and GeneratedTokens of data/AzureLLMInferenceTrace_conv.csv in Azure/AzurePublicDataset
# (CC BY; Patel et al., Splitwise, ISCA 2024). Cut near the 99th percentile of its prompts, 4142.
CHAT = {"input": (760.0, 0.985), "output": (151.3, 0.859)}
CHAT_MOST = 4096


class Lengths(Protocol):
    """A distribution of token counts, each at least 1."""

    def draw(self, source: random.Random) -> int:
        """One count."""
        ...

    @property
    def most(self) -> int:
        """No count is larger."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Always the same."""

    tokens: int

    def draw(self, source: random.Random) -> int:
        """See ``Lengths``."""
        return self.tokens

    @property
    def most(self) -> int:
        """See ``Lengths``."""
        return self.tokens

    def __str__(self) -> str:
        return str(self.tokens)


@dataclass(frozen=True)
class Uniform:
    """Every count from ``low`` to ``high``, both included, is as likely as the other."""

    low: int
    high: int

    def draw(self, source: random.Random) -> int:
        """See ``Lengths``."""
        return source.randint(self.low, self.high)

    @property
    def most(self) -> int:
        """See ``Lengths``."""
        return self.high

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"


@dataclass(frozen=True)
class Lognormal:
    """The logarithm is normal: around that of ``median``, with a deviation of ``spread``; cut at ``most``."""

    median: float
    spread: float
    most: int = CHAT_MOST

    def draw(self, source: random.Random) -> int:
        """See ``Lengths``."""
        value = source.lognormvariate(math.log(self.median), self.spread)
        return max(1, min(self.most, round(min(value, LONGEST))))

    def __str__(self) -> str:
        return f"lognormal:{self.median:g}:{self.spread:g}:{self.most}"


def chat(side: Literal["input", "output"]) -> Lognormal:
    """The fit to chat traffic."""
    return Lognormal(*CHAT[side])


def parse_lengths(text: str, side: Literal["input", "output"] = "input") -> Lengths:
    """A distribution as it is written: ``512``, ``128-512``, ``chat``, ``lognormal:MEDIAN:SPREAD[:MOST]``.

    Raises:
        RequestError: it is none of these, or not within 1 and 2**20.
    """
    word = text.strip()
    try:
        if word == "chat":
            return chat(side)
        if word.startswith("lognormal:"):
            return _lognormal(word.split(":")[1:])
        low, dash, high = word.partition("-")
        found = [int(low), int(high)] if dash else [int(low)]
    except ValueError:
        raise _wrong(text) from None
    if not 1 <= found[0] <= found[-1] <= LONGEST:
        raise _wrong(text)
    return Uniform(*found) if dash else Fixed(*found)


def _lognormal(parts: list[str]) -> Lognormal:
    if len(parts) not in (2, 3):
        raise ValueError(parts)
    median, spread = float(parts[0]), float(parts[1])
    most = int(parts[2]) if len(parts) == 3 else CHAT_MOST
    if not (1 <= median <= LONGEST and 0 <= spread <= 10 and 1 <= most <= LONGEST):
        raise ValueError(parts)
    return Lognormal(median, spread, most)


def _wrong(text: str) -> RequestError:
    return RequestError(
        f"'{text[:40]}' is no distribution of lengths from 1 to {LONGEST} tokens.",
        hint="examples: 512, 128-512, chat, lognormal:80:1.2:2048",
    )
