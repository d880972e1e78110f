"""The fields of a request that say how tokens are chosen: OpenAI's, and those the field has added."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .base import LARGE, Count, Number, Strict, TextOrTexts, TokenId

Json = dict[str, Any]


class JsonSchema(Strict):
    """A named JSON schema."""

    name: str = Field(max_length=64)
    schema_: Json | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Strict):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Strict):
    """Exactly one of four constraints on the answer."""

    json_: Json | str | None = Field(default=None, alias="json")
    regex: str | None = None
    grammar: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=1024, fail_fast=True)] | None = None


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(default=None, description="Accepted; has no effect.")


class SamplingFields(Strict):
    """Both generating requests have these."""

    model: str | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=LARGE)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = None
    bad_words: Annotated[list[str], Field(fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=LARGE)] | None = None
    stop: TextOrTexts | None = None
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=-LARGE, le=LARGE)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    user: str | None = Field(default=None, description="Accepted; has no effect.")

    @property
    def wants_usage(self) -> bool:
        """Whether the stream shall end with what it took."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def without_effect(self) -> list[str]:
        """Fields that were given and are ignored, so that the log can say it."""
        fields = type(self).model_fields.items()
        accepted = [name for name, it in fields if (it.description or "").startswith("Accepted")]
        return [name for name in accepted if getattr(self, name) is not None]
