"""``Engine``: what callers see of serving.

    with Engine("build/smollm2") as engine:
        for output in engine.generate(["Hello", "Goodbye"], SamplingParams(max_tokens=32)):
            print(output.text)

    submission = engine.submit("Hello", SamplingParams(max_tokens=32))      # never blocks
    async for delta in submission: ...                                      # or `for delta in submission:`

Every method may be called from any thread and from any event loop; those that wait say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import time
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optpipe
from optpipe.artifact import Artifact, load_artifact
from optpipe.errors import CapacityError, EngineError, OptpipeError, RequestError
from optpipe.targets.protocol import Executor

from ..sampling import SamplingParams
from ..tokenizer import Tokenizer, context_length, load_tokenizer, stop_ids
from .config import EngineConfig
from .delivery import Mailbox, Outbox
from .intake import Asked, Prompt
from .outputs import RequestOutput
from .parts import CLOSED, Model, put_together
from .request import Request
from .stats import EngineStats, Health
from .submission import Submission

log = logging.getLogger("optpipe.engine")
_QUICK_TOKENS = 8192  # about a millisecond's work


class Engine:
    """Serves an artifact; one without a cache too, though slowly.

    Args:
        artifact: its folder, or one that was opened with ``load_artifact``.
        target: the name of a target; "auto" takes the fastest that can run here.
        config: limits, memory, habits.
        target_options: the target's own, such as ``device``.

    Attributes:
        executor, tokenizer, config: its parts. Without a tokenizer prompts are token ids, and text is empty.
        eos: the model's end tokens.
        vocab_size: token ids are below this.
        context_length: positions that a sequence may have: what the model, the config and the cache allow.
        model_name: of the artifact's folder.
        memory: what was given to weights, cache and workspace.

    Raises:
        ArtifactError: the artifact is missing, damaged or too new.
        PluginError: there is no such target.
        CapacityError: weights, cache and workspace do not fit the machine.
    """

    def __init__(
        self,
        artifact: str | os.PathLike[str] | Artifact,
        target: str = "auto",
        *,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        **target_options: Any,
    ) -> None:
        opened = artifact if isinstance(artifact, Artifact) else load_artifact(artifact)
        # first, so that what reading it takes is free again when the weights come
        tokenizer = load_tokenizer(opened.path) if (opened.path / "tokenizer.json").is_file() else None
        executor = optpipe.load(opened, target=target, **target_options)
        eos, context = stop_ids(opened.path, tokenizer), context_length(opened.path)
        name = Path(opened.path).resolve().name
        self._start(Model(executor, tokenizer, eos, context, name, target), config)

    @classmethod
    def over(
        cls,
        executor: Executor,
        tokenizer: Tokenizer | None = None,
        *,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        eos: Collection[int] = (),
        context_length: int | None = None,
        model_name: str = "model",
    ) -> Self:
        """An engine over an executor of one's own."""
        engine = cls.__new__(cls)
        engine._start(Model(executor, tokenizer, frozenset(eos), context_length, model_name), config)
        return engine

    def _start(self, model: Model, config: EngineConfig) -> None:
        parts = put_together(model, config)
        self.executor, self.tokenizer, self.config = parts.executor, model.tokenizer, config
        self.eos, self.vocab_size, self.model_name = model.eos, parts.executor.vocab_size, model.name
        self.memory, self.context_length = parts.memory, parts.context_length
        self._intake, self._gate, self._loop = parts.intake, parts.gate, parts.loop
        self._threads, self._grammar_threads = parts.threads, parts.grammar_threads
        self._names, self._prefix = itertools.count(), secrets.token_hex(4)
        self._finalizer = weakref.finalize(self, parts.shut)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        salt: bytes = b"",
        stream: bool = True,
        timeout: float | None = None,
    ) -> Submission:
        """Ask for a continuation, and return at once.

        Where an event loop runs in this thread, a prompt of text becomes tokens in another.

        Args:
            prompt: text, or token ids.
            params: how to sample; the defaults when None.
            request_id: a name of one's own; one that is in use is refused.
            priority: lower numbers first, under the priority policy.
            salt: prompts share cached blocks only with prompts of the same salt.
            stream: False tells the reader of each choice only once, at its end, which costs less.
            timeout: seconds after which the request is given up; the config's when None.

        Raises:
            RequestError: what can be seen at once is wrong; the rest comes with ``ready`` or the first delta.
            CapacityError: the queue is full.
            EngineError: the engine is draining or closed.
        """
        params = SamplingParams() if params is None else params
        name = f"{self._prefix}-{next(self._names)}" if request_id is None else request_id
        asked = self._intake.ask(prompt, params, priority, salt)
        mailbox = Mailbox(name, params.n, stream=stream)
        self._gate.admit(mailbox, params.n)
        limit = self.config.request_timeout if timeout is None else timeout
        request = Request(name, params, mailbox, time.monotonic(), limit)
        submission = Submission(mailbox, params.n, self._give_up)
        if _takes_time(prompt, params) and _in_event_loop():
            with contextlib.suppress(RuntimeError):  # the engine is being closed: the reader is told below
                threads = self._grammar_threads if self._intake.compiles(params) else self._threads
                threads.submit(self._enter, request, asked)
                return submission
        self._enter(request, asked)
        submission.check()
        return submission

    def hold(self, sequences: int) -> contextlib.AbstractContextManager[None]:
        """Take places in the queue for requests that this thread submits meanwhile: all of them, or none.

        Args:
            sequences: ``n`` of each of them, added up.

        Raises:
            RequestError: the engine could never take so many.
            CapacityError: the queue is full.
            EngineError: the engine is draining or closed.
        """
        return self._gate.hold(sequences)

    def _enter(self, request: Request, asked: Asked) -> None:
        """Prepare a request and hand it to the engine's thread, or tell its reader why not."""
        outbox = Outbox()
        error: OptpipeError | None = None
        try:
            self._intake.prepare(request, asked)
        except OptpipeError as caught:
            error = caught
        except Exception as caught:  # of a tokenizer or a grammar: they may raise anything
            log.exception("a request could not be prepared")
            error = EngineError(f"The request could not be prepared: {type(caught).__name__}.")
        if error is None and not self._loop.enter(request):
            error = EngineError(CLOSED)
        if error is None:
            request.mailbox.accept(tuple(request.prompt), outbox)
        else:
            self._gate.end(queued=request.params.n, name=request.id)
            request.mailbox.refuse(error, outbox)
        outbox.flush()

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continue prompts, in the order given; however many, they are fed as the queue has room. Blocks.

        Raises:
            RequestError: one of the requests is impossible; the others are given up.
            CapacityError: others fill the queue.
            EngineError: the engine was closed meanwhile.
        """
        each = [params] * len(prompts) if params is None or isinstance(params, SamplingParams) else params
        if len(each) != len(prompts):
            raise RequestError(f"There are {len(prompts)} prompts and {len(each)} parameters for them.")
        outputs: list[RequestOutput] = []
        with contextlib.ExitStack() as stack:
            submissions: list[Submission] = []
            for prompt, one in zip(prompts, each, strict=True):
                submissions.append(
                    stack.enter_context(self._submit_when_free(prompt, one, submissions, outputs))
                )
            outputs += [it.result() for it in submissions[len(outputs) :]]
        return outputs

    def _submit_when_free(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        before: list[Submission],
        outputs: list[RequestOutput],
    ) -> Submission:
        """Submit; while the queue is full, wait for the first of those before that has not ended."""
        while True:
            try:
                return self.submit(prompt, params, stream=False)
            except CapacityError:
                if len(outputs) == len(before):
                    raise  # others fill the queue
                outputs.append(before[len(outputs)].result())

    def abort(self, request_id: str) -> bool:
        """Give a request up; its blocks are free within a step. False when there is no such request."""
        mailbox = self._gate.find(request_id)
        return mailbox is not None and self._give_up(mailbox)

    def _give_up(self, mailbox: Mailbox) -> bool:
        """Give up this very request, wherever it is: a later one may have its name."""
        if mailbox.finished:
            return False
        mailbox.given_up = True
        self._loop.give_up(mailbox)
        return True

    def stats(self) -> EngineStats:
        """Counters and gauges, as of the last step."""
        return self._loop.stats()

    def health(self) -> Health:
        """Whether generation makes progress."""
        return self._loop.health()

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests and wait for those that are in; False when ``timeout`` seconds did not do."""
        self._gate.shut("The engine is shutting down and takes no new requests.")
        return self._gate.wait_empty(timeout)

    def abandon(self) -> None:
        """Tell every reader that nothing more comes, although a step does not come back.

        ``close`` does this too after ten seconds.
        """
        self._gate.shut(CLOSED)
        self._loop.abandon(EngineError(CLOSED))

    def close(self) -> None:
        """Stop now: what runs is aborted, the thread ends. May be called again."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _takes_time(prompt: Prompt, params: SamplingParams) -> bool:
    """Whether a request should not be prepared between two turns of an event loop."""
    if isinstance(prompt, str) or params.structured is not None or params.bad_words:
        return True
    return params.n * len(prompt) > _QUICK_TOKENS


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
