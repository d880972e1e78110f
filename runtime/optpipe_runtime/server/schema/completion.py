"""/v1/completions: its request and answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import LARGE, Answer, Count, Prompt
from .sampling import ResponseFormat, SamplingFields


class CompletionRequest(SamplingFields):
    """Text or token ids to continue."""

    prompt: Prompt
    max_tokens: Count | None = None
    logprobs: Count | None = None
    prompt_logprobs: Count | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=LARGE)] | None = Field(
        default=None, description="Only as large as n: there is no choosing among more."
    )
    suffix: None = Field(default=None, description="Not supported.")
    add_special_tokens: bool | None = None
    response_format: ResponseFormat | None = None


class Usage(Answer):
    """Tokens of a request."""

    class PromptDetails(Answer):
        """Where prompt tokens came from."""

        cached_tokens: int

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None


class CompletionLogprobs(Answer):
    """Four lists of one length, an entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Answer):
    """One continued prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: int | str | None = None
    prompt_logprobs: list[dict[str, dict[str, float | int | str | None]] | None] | None = None


class CompletionAnswer(Answer):
    """What /v1/completions answers."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None
