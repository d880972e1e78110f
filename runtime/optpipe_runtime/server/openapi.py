"""What the server's OpenAPI page says of bodies and errors.

Bodies are read and checked by ourselves, off the event loop, so their schemas are named here.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .config import ServerConfig
from .schema.answers import ErrorAnswer
from .schema.base import Strict
from .schema.chat import ChatRequest
from .schema.completion import CompletionRequest
from .schema.tokens import DetokenizeRequest, TokenizeRequest

REQUESTS: tuple[type[Strict], ...] = (CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest)
_PLACE = "#/components/schemas/{model}"

_REASONS = {
    400: "The request is wrong; the message says where.",
    401: "The API key is missing or unknown.",
    403: "The Host header is not one that this server answers to.",
    404: "There is no such model.",
    408: "The body came too slowly.",
    413: "The body is too long.",
    415: "The body is not said to be JSON.",
    431: "The headers are too long.",
    429: "The queue is full; try again after Retry-After seconds.",
    499: "The client left.",
    500: "Generation failed.",
    503: "The server is stopping, or makes no progress.",
    504: "The request took too long.",
}


def body(schema: type[BaseModel]) -> dict[str, Any]:
    """The ``openapi_extra`` of a route that takes this."""
    content = {"application/json": {"schema": {"$ref": _PLACE.format(model=schema.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that may fail so."""
    return {it: {"model": ErrorAnswer, "description": _REASONS[it]} for it in statuses}


def describe(app: FastAPI, config: ServerConfig) -> dict[str, Any]:
    """The whole page, with the model's name and the limits of this server."""
    page: dict[str, Any] = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    wanted = [(it, "validation") for it in REQUESTS]
    _, found = models_json_schema(wanted, ref_template=_PLACE)  # type: ignore[arg-type]
    schemas = page.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in found["$defs"].items():
        schemas.setdefault(name, schema)
    for request in REQUESTS:
        _limit(schemas[request.__name__]["properties"], config)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    if config.api_keys:
        page["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, methods in page["paths"].items():
            for operation in methods.values():
                operation["security"] = [] if path == "/health" else [{"key": []}]
    return page


def _limit(properties: dict[str, Any], config: ServerConfig) -> None:
    """Say in a request's schema what this server takes."""
    for name, limit in (
        ("model", {"enum": [config.model_name]}),
        ("n", {"maximum": config.max_n}),
        ("logprobs", {"maximum": config.max_logprobs}),
        ("prompt_logprobs", {"maximum": config.max_logprobs}),
        ("top_logprobs", {"maximum": config.max_logprobs}),
        ("stop_token_ids", {"maxItems": config.max_stop}),
        ("bad_words", {"maxItems": config.max_stop}),
        ("tools", {"maxItems": config.max_tools}),
        ("allowed_token_ids", {"maxItems": config.max_bias}),
        ("logit_bias", {"maxProperties": config.max_bias}),
    ):
        branches = properties.get(name, {}).get("anyOf", [])
        if branches and branches[0]["type"] != "boolean":
            branches[0] |= limit  # the other is null
