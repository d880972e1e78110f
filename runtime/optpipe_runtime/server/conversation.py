"""Messages and tools of a request as a chat template takes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..tokenizer import Tokenizer
from .errors import invalid
from .prompts import Encoder, PromptInput
from .schema.chat import Message, Scalar, Tool
from .tool_calls import instructions

# Variables that are the server's to set. A request that could set them could bring a template of its own.
_RESERVED = frozenset(
    [
        "self",
        "tokenizer",
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "chat_template",
        "tokenize",
        "raise_exception",
    ]
)
MAX_DEPTH = 64  # of a past call's arguments
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def chat_prompt(
    encoder: Encoder,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None,
    variables: Mapping[str, Scalar] | None,
    *,
    most: int | None = None,
) -> PromptInput:
    """The prompt of a conversation, of ``most`` tokens. Takes time: not for the event loop.

    Raises:
        ApiError: a variable is the server's to set, or a past call's arguments are no JSON object.
        RequestError: there is no template, or it refuses the messages.
    """
    for name in variables or {}:
        if not _NAME.fullmatch(name) or name in _RESERVED or name in tokenizer.special:
            raise invalid(
                f"chat_template_kwargs may not set '{name[:64]}'.", f"chat_template_kwargs.{name[:64]}"
            )
    turns = [_turn(it, place) for place, it in enumerate(messages)]
    shown = [it.model_dump(exclude_none=True) for it in tools or ()]
    if shown and not re.search(r"\btools\b", tokenizer.chat_template or ""):
        turns, shown = _told(turns, instructions(shown)), []
    return encoder.chat(turns, {**(variables or {}), "tools": shown or None}, most=most)


def _turn(message: Message, place: int) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        content = "".join(it.text for it in content)
    if content is None:
        content = message.refusal  # a past answer of a server that refuses
    if content is None and not message.tool_calls:
        raise invalid(f"The message {place} has no content.", f"messages.{place}.content")
    turn: dict[str, Any] = {
        # Templates know the older name only.
        "role": "system" if message.role == "developer" else message.role,
        "content": content or "",
    }
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": it.id,
                "type": "function",
                "function": {"name": it.function.name, "arguments": _arguments(it.function.arguments, place)},
            }
            for it in message.tool_calls
        ]
    given = {
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content,
    }
    return turn | {name: value for name, value in given.items() if value is not None}


def _arguments(text: str, place: int) -> Any:
    """Templates write the arguments themselves, from the value."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise invalid(
            f"The message {place} has a tool call whose arguments are no JSON object.",
            f"messages.{place}.tool_calls",
        )
    if _depth_passes(value, MAX_DEPTH):
        raise invalid(
            f"The message {place} has a tool call whose arguments nest deeper than {MAX_DEPTH} levels.",
            f"messages.{place}.tool_calls",
        )
    return value


def _depth_passes(value: Any, most: int) -> bool:
    """Whether lists and objects nest deeper, found without recursion."""
    level = [value]
    for _ in range(most + 1):
        level = [
            it
            for one in level
            if isinstance(one, dict | list)
            for it in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


def _told(turns: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """``turns`` with ``text`` in the system message, which is added where there is none."""
    if turns[0]["role"] == "system":
        return [turns[0] | {"content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]
