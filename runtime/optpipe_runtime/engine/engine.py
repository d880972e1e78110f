"""``Engine``: what callers see of serving.

    with Engine("build/smollm2") as engine:
        for output in engine.generate(["Hello", "Goodbye"], SamplingParams(max_tokens=32)):
            print(output.text)

    submission = engine.submit("Hello", SamplingParams(max_tokens=32))      # never blocks
    async for delta in submission: ...                                      # or `for delta in submission:`

Every method may be called from any thread and from any event loop; those that wait say so.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from optpipe.targets.protocol import Executor

from .config import EngineConfig
from .outputs import Delta, RequestOutput
from .stats import EngineStats, Health

if TYPE_CHECKING:
    from ..sampling.params import SamplingParams
    from ..tokenizer import Tokenizer

Prompt = str | Sequence[int]


class Submission(Protocol):
    """A request on its way: an iterator of deltas, for threads and for event loops. Read it from one place.

    Attributes:
        request_id: as given, or made up.
    """

    request_id: str

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the request is accepted: its prompt is tokens, and it is in the queue.

        Raises:
            RequestError: it asks for something impossible.
            CapacityError: it can never fit the cache.
        """

    async def ready(self) -> None:
        """``wait_ready`` for event loops."""

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        """The prompt as the model sees it; known once ready."""

    def __iter__(self) -> Iterator[Delta]: ...
    def __aiter__(self) -> AsyncIterator[Delta]: ...

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Wait for the end and join the deltas that were not read yet.

        Raises:
            RequestError, CapacityError: the request was not accepted.
            EngineError: ``timeout`` seconds passed.
        """

    async def aresult(self) -> RequestOutput:
        """``result`` for event loops."""

    def abort(self) -> bool:
        """Give the request up; its last deltas say "abort". False when it had ended."""


class Engine:
    """Serves an artifact.

    Args:
        artifact: its folder, or one that was opened with ``load_artifact``.
        target: the name of a target; "auto" takes the fastest that can run here.
        config: limits, memory, habits.
        target_options: the target's own, such as ``device``.

    Raises:
        ArtifactError: the artifact is missing, damaged or too new, or is not paged.
        PluginError: there is no such target.
        CapacityError: weights, cache and workspace do not fit the machine.
    """

    def __init__(
        self,
        artifact: str | os.PathLike[str] | Any,
        target: str = "auto",
        *,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        **target_options: Any,
    ) -> None:
        raise NotImplementedError

    @classmethod
    def over(
        cls,
        executor: Executor,
        tokenizer: Tokenizer | None = None,
        *,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        eos: Sequence[int] = (),
        context_length: int | None = None,
        model_name: str = "model",
    ) -> Self:
        """An engine over an executor of one's own; without a tokenizer, prompts are ids and text is empty."""
        raise NotImplementedError

    config: EngineConfig
    executor: Executor
    tokenizer: Tokenizer | None
    eos: frozenset[int]
    context_length: int
    """Positions a sequence may have: the model's, the config's or the cache's limit, whichever is least."""
    vocab_size: int
    model_name: str
    block_size: int
    num_blocks: int

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        salt: bytes = b"",
        stream: bool = True,
    ) -> Submission:
        """Ask for a continuation, and return at once; a prompt of text becomes tokens in another thread.

        Args:
            prompt: text, or token ids.
            params: how to sample; the defaults when None.
            request_id: a name of one's own; one that is in use is refused.
            priority: lower numbers first, under the priority policy.
            salt: prompts share cached blocks only with prompts of the same salt.
            stream: False tells the reader of each choice only once, at its end, which costs less.

        Raises:
            RequestError: what can be seen at once is wrong; the rest comes with ``ready`` or the first delta.
            CapacityError: the queue is full.
            EngineError: the engine is draining or closed.
        """
        raise NotImplementedError

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        timeout: float | None = None,
    ) -> list[RequestOutput]:
        """Continue prompts, in the order given; however many, they are fed as the queue has room. Blocks.

        Raises:
            RequestError: one of the requests is impossible; the others are given up.
        """
        raise NotImplementedError

    def abort(self, request_id: str) -> bool:
        """Give a request up; its blocks are free within a step. False when there is no such request."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """Counters and gauges, as of the last step."""
        raise NotImplementedError

    def health(self) -> Health:
        """Whether generation makes progress."""
        raise NotImplementedError

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests and wait for the running ones; False when ``timeout`` seconds did not do."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop now: what runs is aborted, the thread ends. May be called again."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
