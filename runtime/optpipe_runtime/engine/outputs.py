"""What comes out of the engine: pieces while a request runs, and the whole of it at its end.

A request has one choice, or ``n`` of them; each grows by its own deltas. Token ids are those that were
sampled, the one that ended the text too; text is what the reader should see: without an end token, without
a stop string, and never half a character.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

from optpipe.errors import OptpipeError

if TYPE_CHECKING:
    from ..sampling.logprobs import TokenLogprobs

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one choice took.

    Attributes:
        prompt_tokens: of the prompt; the same for every choice of a request.
        completion_tokens: sampled, an end token too.
        cached_tokens: prompt tokens that the prefix cache had.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """When things happened to one choice, in seconds of ``time.monotonic()``.

    Attributes:
        arrived: ``submit`` was called.
        scheduled: its first step began; None when it never ran.
        first_token: its first token was sampled; None when there is none.
        finished: its end.
    """

    arrived: float
    scheduled: float | None
    first_token: float | None
    finished: float


@dataclass(frozen=True, slots=True)
class Delta:
    """What one choice gained since the delta before.

    Several steps are merged into one delta when the reader is slower than the engine; nothing is lost.

    Attributes:
        request_id: of the request.
        index: of the choice, from 0.
        text: new text; may be empty while a character or a possible stop string is incomplete.
        token_ids: new tokens.
        logprobs: one entry a new token, or None when the request asks for none.
        prompt_logprobs: on the first delta of a request that asks for them: one entry a prompt token, None
            for the first of them, which nothing predicts.
        finish_reason: None while it goes on.
        stop_reason: the stop string or the stop token id that ended it; None for the model's own end token.
        error: why, when the finish reason is "error".
        usage: on the last delta of the choice.
        timing: on the last delta of the choice.
    """

    request_id: str
    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: OptpipeError | None = None
    usage: Usage | None = None
    timing: Timing | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished choice; the attributes are those of :class:`Delta`, all deltas joined."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    error: OptpipeError | None
    usage: Usage
    timing: Timing


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A finished request.

    Attributes:
        request_id: given to ``submit``, or made up there.
        prompt_token_ids: the prompt as the model saw it.
        prompt_logprobs: see :class:`Delta`.
        completions: one a choice, by index.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None
    completions: tuple[Completion, ...]

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.completions[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of the first choice."""
        return self.completions[0].token_ids

    @property
    def usage(self) -> Usage:
        """Of all choices together; the prompt counts once."""
        first = self.completions[0].usage
        sampled = sum(it.usage.completion_tokens for it in self.completions)
        return Usage(first.prompt_tokens, sampled, first.cached_tokens)


def joined(deltas: Sequence[Delta]) -> Completion:
    """All deltas of one choice as a whole; the last of them says how it ended."""
    last = deltas[-1]
    assert last.finish_reason and last.usage and last.timing, f"{last = } is not the end"
    logprobs = [it.logprobs for it in deltas if it.logprobs is not None]
    return Completion(
        last.index,
        "".join(it.text for it in deltas),
        tuple(chain.from_iterable(it.token_ids for it in deltas)),
        tuple(chain.from_iterable(logprobs)) if logprobs else None,
        last.finish_reason,
        last.stop_reason,
        last.error,
        last.usage,
        last.timing,
    )
