"""Requests to an engine in this process: what a program sees that embeds it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..sampling import SamplingParams
from .load import ClientError
from .record import Record
from .workload import Request

if TYPE_CHECKING:
    from ..engine import Engine


class EngineClient:
    """Submits greedy requests and reads their deltas in the event loop.

    Args:
        engine: to be measured.
        ignore_eos: go on to the wanted length, whatever the model says.
    """

    def __init__(self, engine: Engine, *, ignore_eos: bool = True) -> None:
        self._engine, self._ignore_eos = engine, ignore_eos

    def prepare(self, request: Request) -> tuple[str | list[int], SamplingParams]:
        """See ``Client.prepare``."""
        params = SamplingParams(temperature=0.0, max_tokens=request.output_len, ignore_eos=self._ignore_eos)
        return request.prompt, params

    async def send(self, prepared: tuple[str | list[int], SamplingParams], record: Record) -> None:
        """See ``Client.send``. A chunk is a delta with tokens."""
        offset = time.monotonic() - time.perf_counter()  # of the engine's clock
        async with self._engine.submit(*prepared) as submission:
            async for delta in submission:
                if delta.token_ids:
                    record.chunks.append(time.perf_counter())
                if delta.finish_reason in ("error", "abort"):
                    raise ClientError(delta.error.message if delta.error else "the engine gave it up")
                if delta.timing is not None and delta.timing.first_token is not None:
                    record.made = (delta.timing.first_token - offset, delta.timing.finished - offset)
                if delta.usage is not None:
                    record.prompt_tokens = delta.usage.prompt_tokens
                    record.output_tokens = delta.usage.completion_tokens
        if not record.chunks:
            raise ClientError("the answer has no token")
