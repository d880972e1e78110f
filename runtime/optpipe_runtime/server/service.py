"""What the routes share: the engine, the limits, the metrics, and threads for work that takes time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

from starlette.requests import Request

from optpipe.errors import ArtifactError

from ..engine import Engine
from ..tokenizer import Tokenizer
from .config import ServerConfig
from .errors import ApiError
from .health import Prober
from .metrics import Metrics
from .prompts import Encoder
from .token_text import TokenTexts

if TYPE_CHECKING:
    from .job import Job

T = TypeVar("T")
LONG = 128 << 10  # bytes; shorter ones are tokenized in some tenths of a second at most


class Service:
    """One engine as the routes see it.

    Attributes:
        engine: generates. Whoever made it closes it.
        config: the limits, and the model's public name.
        tokenizer: the engine's.
        encoder: texts and conversations to token ids.
        texts: token ids to the texts and bytes that log-probabilities name.
        metrics: what /metrics shows.
        prober: what /health asks.
        jobs: those that are at the engine; each enters and leaves by itself.
        created: when the server started, in seconds of Unix time.

    Raises:
        ArtifactError: the engine has no tokenizer.
    """

    def __init__(self, engine: Engine, config: ServerConfig) -> None:
        if engine.tokenizer is None:
            raise ArtifactError("The engine has no tokenizer, and a server needs one.")
        self.engine = engine
        self.config = replace(config, max_prompt_tokens=_prompt_limit(engine, config))
        self.tokenizer: Tokenizer = engine.tokenizer
        self.encoder = Encoder(self.tokenizer)
        self.texts = TokenTexts(self.tokenizer)
        self.metrics = Metrics(engine, config.model_name)
        self.prober = Prober(engine, config.stall_after)
        self.jobs: set[Job] = set()
        self.created = int(time.time())
        self._threads = ThreadPoolExecutor(config.prepare_threads, thread_name_prefix="optpipe-prepare")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="optpipe-prepare-long")

    async def prepare(
        self, work: Callable[[], T], discard: Callable[[T], None] = lambda result: None, *, size: int = 0
    ) -> T:
        """Run work that takes time off the event loop.

        Args:
            work: never runs when this is cancelled before a thread has taken it.
            discard: gets the result of work that was cancelled too late.
            size: bytes of its input. Long inputs, which may take seconds, wait for each other alone.
        """
        threads = self._long if size > LONG else self._threads
        future = threads.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda it: None if _failed(it) else discard(it.result()))
            raise

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not served.

        Raises:
            ApiError: with 404.
        """
        if name is not None and name != self.config.model_name:
            raise ApiError(
                404,
                f"The model '{name[:200]}' is not served here; '{self.config.model_name}' is.",
                param="model",
                code="model_not_found",
            )

    def stop(self) -> None:
        """Take nothing more and give up what runs: its clients are told, with a 503 or an event."""
        self.engine.drain(0)
        for job in list(self.jobs):
            job.abort()

    def abandon(self) -> None:
        """Tell the clients the same although the engine does not answer."""
        self.engine.abandon()

    def close(self) -> None:
        """Let the threads go. The engine is not touched."""
        for threads in (self._threads, self._long):
            threads.shutdown(wait=False, cancel_futures=True)


def service_of(request: Request) -> Service:
    """The service of the app that a request came to."""
    return cast("Service", request.app.state.service)


def _failed(future: Future[T]) -> bool:
    return future.cancelled() or future.exception() is not None


def _prompt_limit(engine: Engine, config: ServerConfig) -> int:
    """The most prompt tokens: one position must be left for the answer."""
    room = engine.context_length - 1
    return room if config.max_prompt_tokens is None else min(room, config.max_prompt_tokens)
