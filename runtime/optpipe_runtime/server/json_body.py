"""A request's body: read within its bounds on the event loop, checked against its schema elsewhere."""

from __future__ import annotations

import asyncio
from email.message import Message
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from .config import ServerConfig
from .errors import ApiError, from_pydantic

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, config: ServerConfig) -> bytes:
    """All of the body.

    Raises:
        ApiError: it is not said to be JSON (which keeps web pages of other origins from sending it without
            being asked about), is compressed, is too long, or comes too slowly.
        ClientDisconnect: the client left.
    """
    if not _is_json(request.headers.get("content-type", "")):
        raise ApiError(415, "The Content-Type must be application/json.", code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise ApiError(
            415,
            "The body must not be compressed: Content-Encoding is not taken.",
            code="unsupported_media_type",
        )
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and (len(stated) > 18 or int(stated) > config.max_body_bytes):
        raise _too_long(config)
    pieces, total = [], 0
    try:
        async with asyncio.timeout(config.body_timeout):
            async for piece in request.stream():
                total += len(piece)
                if total > config.max_body_bytes:
                    raise _too_long(config)
                pieces.append(piece)
    except TimeoutError:
        raise ApiError(
            408, f"The body did not arrive within {config.body_timeout:g} s.", headers={"Connection": "close"}
        ) from None
    return b"".join(pieces)


def parse(schema: type[M], body: bytes) -> M:
    """The body as its schema has it. Takes time: not for the event loop.

    Raises:
        ApiError: it is no JSON object, or not one that the schema allows.
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise from_pydantic(problems, list(schema.model_fields)) from None
    except (RecursionError, ValueError):  # a number of thousands of digits, a chain of thousands of brackets
        raise ApiError(400, "The body is not JSON that can be read.", code="invalid_json") from None


def _is_json(content_type: str) -> bool:
    message = Message()
    message["content-type"] = content_type
    return message.get_content_type() == "application/json"


def _too_long(config: ServerConfig) -> ApiError:
    return ApiError(
        413,
        f"The body is longer than the {config.max_body_bytes} bytes that this server takes.",
        code="body_too_large",
        headers={"Connection": "close"},
    )


__all__ = ["ClientDisconnect", "parse", "read_body"]
