"""How an endpoint writes what the engine makes: what both have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..engine import Delta, RequestOutput, Usage

Json = dict[str, Any]


class Style(Protocol):
    """Writes one answer, whole or in chunks. It keeps what it needs between chunks: one object an answer."""

    def opening(self) -> list[Json]:
        """Chunks before anything is generated."""
        ...

    def chunks(self, delta: Delta) -> list[Json]:
        """Chunks for what one choice gained; none while nothing can be shown yet."""
        ...

    def usage_chunk(self, usage: Usage) -> Json:
        """The last chunk, for those who ask for usage."""
        ...

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> Json:
        """The answer in one piece."""
        ...


def usage_json(usage: Usage) -> Json:
    """Usage as OpenAI writes it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
