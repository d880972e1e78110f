"""Whether text is being made: what /health answers from.

With work to do, the engine must make progress. With none, one token is generated to see that it could; a
proof is good for a while, and clients that ask at the same time share one.
"""

from __future__ import annotations

import asyncio
import time

from optpipe.errors import OptpipeError

from ..engine import Engine
from ..sampling.params import SamplingParams

FRESH = 2.0  # seconds for which a proof holds


class Prober:
    """Asks the engine for proof.

    Args:
        engine: to be asked.
        patience: seconds that one token may take.
    """

    def __init__(self, engine: Engine, patience: float) -> None:
        self._engine, self._patience = engine, patience
        self._proven = float("-inf")
        self._running: asyncio.Task[str | None] | None = None

    async def trouble(self) -> str | None:
        """What is wrong, as a sentence, or None."""
        if self._running is not None and not self._running.done():
            return await asyncio.shield(self._running)
        health, stats = self._engine.health(), self._engine.stats()
        if stats.running or stats.waiting or health.stalled:
            if not health.ok:
                return health.reason or "Generation makes no progress."
            stuck = health.stalled > self._patience
            return f"Generation has made no progress for {health.stalled:.1f} s." if stuck else None
        # What is wrong with an engine that has nothing to do may have passed, and only a step can tell.
        if health.ok and time.monotonic() - self._proven < FRESH:
            return None
        self._running = asyncio.create_task(self._probe())
        return await asyncio.shield(self._running)

    async def _probe(self) -> str | None:
        """Generate one token."""
        try:
            params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
            submission = self._engine.submit([0], params, stream=False)
        except OptpipeError as error:
            return error.message
        try:
            async with asyncio.timeout(self._patience):
                output = await submission.aresult()
        except TimeoutError:
            return f"One token was not generated within {self._patience:g} s."
        except OptpipeError as error:
            return error.message
        finally:
            submission.abort()
        if output.completions[0].finish_reason == "error":
            return "Generating one token failed; the server's log says why."
        self._proven = time.monotonic()
        return None
