"""The small answers: models, health, errors."""

from __future__ import annotations

from typing import Literal

from .base import Answer


class ModelCard(Answer):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None


class ModelList(Answer):
    """All models that are served: one."""

    object: Literal["list"]
    data: list[ModelCard]


class HealthAnswer(Answer):
    """Whether text is being made."""

    status: Literal["ok"]


class ErrorBody(Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """Every answer of 400 and above."""

    error: ErrorBody
