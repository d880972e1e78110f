"""Requests to any OpenAI-compatible server, streamed; peers are measured by it in the same way.

A token is seen when its chunk is: the opening chunk of a chat, which only names the role, has none. The last
token came with the last chunk that has text or ends the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from .http_stream import Event, Server, post_events
from .load import ClientError, Settle
from .record import Record
from .workload import Request

Endpoint = Literal["completions", "chat"]
_TEXTS = ("content", "reasoning_content", "reasoning", "tool_calls")  # of a chat's delta


@dataclass(frozen=True)
class HttpClient:
    """See the module.

    Attributes:
        server: where.
        model: the name that requests give.
        endpoint: "completions" takes prompts of text and of token ids, "chat" only of text.
        count: output tokens by the server's "usage", or by "chunks" where it sends none (or a wrong one).
        ignore_eos: ask for the wanted length whatever the model says; not every server knows this field.
        extra: more fields of every request.
    """

    server: Server
    model: str
    endpoint: Endpoint = "completions"
    count: Literal["usage", "chunks"] = "usage"
    ignore_eos: bool = True
    extra: Mapping[str, Any] | None = None

    def prepare(self, request: Request) -> tuple[Request, bytes]:
        """The whole request as it goes over the wire."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.output_len,
            "temperature": 0,
            "stream": True,
        }
        if self.count == "usage":
            body["stream_options"] = {"include_usage": True}
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.endpoint == "chat":
            body["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            body["prompt"] = request.prompt
        data = json.dumps(body | dict(self.extra or {})).encode()
        path = "/chat/completions" if self.endpoint == "chat" else "/completions"
        return request, self.server.head("POST", path, len(data)) + data

    async def send(self, prepared: tuple[Request, bytes], record: Record) -> Settle:
        """See ``Client.send``."""
        request, data = prepared
        events = await post_events(self.server, data)
        return partial(read_events, events, request, record, by_usage=self.count == "usage")


def read_events(events: list[Event], request: Request, record: Record, *, by_usage: bool) -> None:
    """Fill a record from the events of its answer.

    Raises:
        ClientError: the answer is an error, or has no token, or no end.
    """
    try:
        _read(events, request, record, by_usage)
    except (AttributeError, TypeError, ValueError):
        raise ClientError("the events of the stream are not of OpenAI's form") from None


def _read(events: list[Event], request: Request, record: Record, by_usage: bool) -> None:
    usage: Any = None
    done = False
    for time, data in events:
        if data == b"[DONE]":
            done = True
            continue
        value = _parsed(data)
        if value.get("error"):
            raise ClientError(f"the stream says: {_said(value['error'])}")
        usage = value.get("usage") or usage
        for choice in (value.get("choices") or [])[:1]:
            ends = choice.get("finish_reason") is not None
            done = done or ends
            if _has_token(choice, ends):
                record.chunks.append(time)
            elif not ends:
                continue
            record.last = time
    if record.last is None:
        raise ClientError("the answer has no token")
    if not done:
        raise ClientError("the stream ended early")
    record.chunks = record.chunks or [record.last]  # all that came was an end
    ids = len(request.prompt) if isinstance(request.prompt, list) else None
    record.prompt_tokens, record.output_tokens, record.counted_by = ids, len(record.chunks), "chunks"
    if by_usage and usage and usage.get("completion_tokens") is not None:
        record.prompt_tokens = usage.get("prompt_tokens", ids)
        record.output_tokens, record.counted_by = int(usage["completion_tokens"]), "usage"


def _has_token(choice: dict[str, Any], ends: bool) -> bool:
    """Whether a chunk brings a token: one may show no text yet, when its character is not whole."""
    if "text" in choice:
        return bool(choice["text"]) or not ends
    delta = choice.get("delta") or {}
    return any(delta.get(name) for name in _TEXTS) or not (ends or "role" in delta)


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ClientError("an event of the stream is no JSON object")
    return value


def _said(error: Any) -> str:
    text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text).split())[:200]
