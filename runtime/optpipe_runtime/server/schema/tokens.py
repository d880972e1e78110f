"""/tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .base import Answer, Strict, TokenId
from .chat import Message, Scalar, Tool


class TokenizeRequest(Strict):
    """A prompt or a conversation: exactly one of the two."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    chat_template_kwargs: Annotated[dict[str, Scalar], Field(max_length=16)] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class TokenizeAnswer(Answer):
    """Token ids."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Strict):
    """Token ids to turn into text."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class DetokenizeAnswer(Answer):
    """Their text."""

    prompt: str
