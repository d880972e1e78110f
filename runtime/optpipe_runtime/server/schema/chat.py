"""/v1/chat/completions: its request and answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from .base import Answer, Count, Strict
from .completion import Usage
from .sampling import Json, ResponseFormat, SamplingFields


class TextPart(Strict):
    """A piece of a message. The model takes text only."""

    type: Literal["text"]
    text: str


class FunctionCall(Strict):
    """Which function the model called, and with what."""

    name: str
    arguments: str


class ToolCall(Strict):
    """A call in a message of the assistant."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class Message(Strict):
    """One turn. What an answer's message holds may come back as it is."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            Annotated[str, Tag("=text")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("=parts")],
            Discriminator(lambda value: "=parts" if isinstance(value, list) else "=text"),
        ]
        | None
    ) = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class Function(Strict):
    """What a tool does and takes."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(Strict):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function


class NamedTool(Strict):
    """The one function that the model must call."""

    class Name(Strict):
        """Its name."""

        name: str

    type: Literal["function"]
    function: Name


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("=word")] | Annotated[NamedTool, Tag("=named")],
    Discriminator(lambda value: "=named" if isinstance(value, dict | NamedTool) else "=word"),
]

Scalar = str | bool | int | float | None


class ChatRequest(SamplingFields):
    """A conversation to continue."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: Annotated[dict[str, Scalar], Field(max_length=16)] | None = None
    chat_template: None = Field(default=None, description="Refused: templates come with the model only.")
    metadata: dict[str, str] | None = Field(default=None, description="Accepted; has no effect.")
    store: bool | None = Field(default=None, description="Accepted; nothing is stored.")
    service_tier: str | None = Field(default=None, description="Accepted; has no effect.")
    safety_identifier: str | None = Field(default=None, description="Accepted; has no effect.")
    reasoning_effort: str | None = Field(default=None, description="Accepted; has no effect.")
    verbosity: str | None = Field(default=None, description="Accepted; has no effect.")
    prompt_cache_key: str | None = Field(default=None, description="Accepted; has no effect.")
    prompt_cache_retention: str | None = Field(default=None, description="Accepted; has no effect.")
    prediction: Json | None = Field(default=None, description="Accepted; has no effect.")
    modalities: list[Literal["text"]] | None = Field(default=None, description="Text is all there is.")


class TopLogprob(Answer):
    """A token that might have come."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """A token that came."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """An entry a token."""

    content: list[ChatLogprob] | None
    refusal: None = None


class AnswerToolCall(Answer):
    """A call that the model makes."""

    class Called(Answer):
        """Its function and arguments."""

        name: str
        arguments: str

    id: str
    type: Literal["function"]
    function: Called


class AnswerMessage(Answer):
    """The model's turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[AnswerToolCall] | None = None


class ChatChoice(Answer):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    stop_reason: int | str | None = None


class ChatAnswer(Answer):
    """What /v1/chat/completions answers."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None
