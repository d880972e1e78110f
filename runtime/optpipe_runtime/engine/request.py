"""A request inside the engine: what was asked, and how far each of its choices is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from optpipe.errors import OptpipeError

from ..core import Sequence as TokenSequence
from ..sampling import RowState, Sampled, SamplingParams, TokenLogprobs
from .delivery import Mailbox
from .outputs import FinishReason, Timing, Usage
from .text import TextState


class Gain(NamedTuple):
    """What a step gave to one choice: see :class:`~.outputs.Delta`."""

    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] | None
    reason: FinishReason | None
    stop: int | str | None
    error: OptpipeError | None


class Choice:
    """One of the ``n`` texts of a request.

    Attributes:
        request: it belongs to.
        index: from 0.
        sequence: its tokens, as the scheduler sees them.
        state: what the sampler remembers.
        text: what the detokenizer remembers.
        open: whether it has not ended.
        sampled: tokens so far.
        scheduled: when its first step began, in seconds of ``time.monotonic()``.
        first_token: when its first token was sampled.
        failure: why its prompt could not be scored, or None; it ends with the step.
    """

    __slots__ = (
        "failure", "first_token", "index", "open", "request", "sampled", "scheduled", "sequence", "state",
        "text",
    )  # fmt: skip

    def __init__(
        self, request: Request, index: int, sequence: TokenSequence, state: RowState, text: TextState
    ) -> None:
        self.request = request
        self.index = index
        self.sequence = sequence
        self.state = state
        self.text = text
        self.open = True
        self.sampled = 0
        self.scheduled: float | None = None
        self.first_token: float | None = None
        self.failure: OptpipeError | None = None

    def extend(self, sampled: Sampled) -> Gain:
        """Turn what the sampler chose into text, and see whether the choice has ended.

        Tokens behind a stop string are dropped: without drafts they would not have been sampled.
        """
        tokens, pieces = sampled.tokens, []
        for count, token in enumerate(tokens, start=1):
            pieces.append(self.text.push(token))
            if self.text.matched is not None:
                tokens = tokens[:count]
                break
        reason: FinishReason | None = sampled.finish
        stop: int | str | None = sampled.stop_token
        if self.text.matched is not None:
            reason, stop = "stop", self.text.matched
        elif reason is None and len(self.sequence.tokens) + len(tokens) >= self.sequence.max_len:
            reason = "length"
        if reason is not None:
            pieces.append(self.text.flush())
        self.sampled += len(tokens)
        text = pieces[0] if len(pieces) == 1 else "".join(pieces)
        logprobs = None if sampled.logprobs is None else sampled.logprobs[: len(tokens)]
        return Gain(tokens, text, logprobs, reason, stop, sampled.error)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(self.sequence.prompt_len, self.sampled, self.sequence.cached)

    def timing(self, now: float) -> Timing:
        """When things happened, if it ends now."""
        return Timing(self.request.arrived, self.scheduled, self.first_token, now)


class Request:
    """What was asked.

    Attributes:
        id: of the request.
        prompt: token ids.
        params: how to sample.
        mailbox: where its reader finds what came.
        arrived: when, in seconds of ``time.monotonic()``.
        deadline: when it is given up, or None.
        choices: filled once the prompt is known.
        prompt_logprobs: of the prompt tokens computed so far, where the request asks for them.
    """

    __slots__ = (
        "arrived", "choices", "deadline", "id", "mailbox", "params", "prompt", "prompt_logprobs", "timeout",
    )  # fmt: skip

    def __init__(
        self, request_id: str, params: SamplingParams, mailbox: Mailbox, arrived: float, timeout: float | None
    ) -> None:
        self.id = request_id
        self.prompt: Sequence[int] = ()
        self.params = params
        self.mailbox = mailbox
        self.arrived = arrived
        self.timeout = timeout
        self.deadline = None if timeout is None else arrived + timeout
        self.choices: list[Choice] = []
        self.prompt_logprobs: list[TokenLogprobs | None] | None = (
            None if params.prompt_logprobs is None else [None]
        )
