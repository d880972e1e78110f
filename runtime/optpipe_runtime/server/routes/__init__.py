"""One endpoint a file; each has a ``router``."""

from __future__ import annotations

from fastapi import APIRouter

from . import chat, completions, health, metrics, models, page, tokens

ROUTERS: tuple[APIRouter, ...] = tuple(
    it.router for it in (completions, chat, models, tokens, health, metrics, page)
)
