"""What the schemas have in common: no coercion, no unknown field, no number that is not one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

LARGE = 2**31 - 1

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=LARGE)]
TokenId = Annotated[int, Field(ge=0, le=LARGE)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]


class Strict(BaseModel):
    """An object of a request."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Answer(BaseModel):
    """An object of a response."""

    model_config = ConfigDict(extra="forbid")


def _kind(value: Any) -> str:
    if not isinstance(value, list):
        return "=text"
    first = value[0] if value else None
    if isinstance(first, str):
        return "=texts"
    return "=many" if isinstance(first, list) else "=tokens"


# One prompt or several, as text or ids. The first item decides which, so that an error names one branch.
Prompt = Annotated[
    Annotated[str, Tag("=text")]
    | Annotated[Texts, Tag("=texts")]
    | Annotated[TokenIds, Tag("=tokens")]
    | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True), Tag("=many")],
    Discriminator(_kind),
]

TextOrTexts = Annotated[
    Annotated[str, Tag("=text")] | Annotated[list[str], Field(fail_fast=True), Tag("=texts")],
    Discriminator(lambda value: "=texts" if isinstance(value, list) else "=text"),
]
