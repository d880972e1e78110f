"""Calls of tools: told to the model in its prompt, found in its text.

Models write a call as ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, the form of Hermes, which
Qwen and others learnt too. Where the client requires a call, a JSON schema leaves the model no other text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import invalid
from .schema.chat import Tool
from .schema_refs import moved

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CALLS = 16  # that a model is made to write when it must call

# For templates that say nothing of tools: the tags and the order that models of the Hermes form learnt.
INSTRUCTIONS = """# Tools

You may call these functions when they help to answer:
<tools>
{tools}
</tools>

To call one, write a JSON object with its name and arguments between tags, and nothing else:
<tool_call>
{{"name": "function name", "arguments": {{"argument": "value"}}}}
</tool_call>"""


@dataclass(frozen=True)
class Call:
    """A call that the model makes.

    Attributes:
        id: by which the tool's answer will name it.
        name: of the function.
        arguments: JSON text.
    """

    id: str
    name: str
    arguments: str

    def json(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


def new_call(name: str, arguments: str) -> Call:
    """A call with an id of its own."""
    return Call(f"call_{secrets.token_hex(12)}", name, arguments)


class CallFinder:
    """Separates text from calls as both arrive. What may be the beginning of a call is held back."""

    def __init__(self) -> None:
        self._held = ""
        self._inside = False
        self._found_any = False

    def push(self, text: str) -> tuple[str, list[Call]]:
        """The text that is none of a call, and the calls that are complete."""
        self._held += text
        shown, calls = "", []
        while True:
            marker = CLOSE if self._inside else OPEN
            at = self._held.find(marker)
            if at < 0:
                break
            piece, self._held = self._held[:at], self._held[at + len(marker) :]
            if not self._inside:
                shown += self._plain(piece)
            elif (call := _call_of(piece)) is not None:
                calls.append(call)
                self._found_any = True
            else:  # no call after all
                shown += OPEN + piece + CLOSE
            self._inside = not self._inside
        if not self._inside:
            keep = _overlap(self._held, OPEN)
            shown += self._plain(self._held[: len(self._held) - keep])
            self._held = self._held[len(self._held) - keep :]
        return shown, calls

    def finish(self) -> tuple[str, list[Call]]:
        """What was held back at the end. A call whose end mark is missing is one if it is whole."""
        held, self._held = self._held, ""
        if not self._inside:
            return self._plain(held), []
        call = _call_of(held)
        return (OPEN + held, []) if call is None else ("", [call])

    def _plain(self, text: str) -> str:
        """Line ends between and behind calls belong to the form, not to the text."""
        return text.lstrip() if self._found_any else text


def _call_of(text: str) -> Call | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return new_call(
        value["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    )


def _overlap(text: str, marker: str) -> int:
    """How many last characters of ``text`` may be the beginning of ``marker``."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if marker.startswith(text[-n:])), 0)


def calls_of(text: str) -> list[Call]:
    """The calls in a list that :func:`required_schema` has shaped; none when it was cut short."""
    try:
        return [
            new_call(it["name"], json.dumps(it["arguments"], ensure_ascii=False)) for it in json.loads(text)
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def named_schema(tools: Sequence[Tool], name: str) -> dict[str, Any]:
    """A schema of one function's arguments.

    Raises:
        ApiError: no tool has this name, or its parameters are no schema.
    """
    for tool in tools:
        if tool.function.name == name:
            return _parameters(tool)
    raise invalid(
        f"tool_choice names the function '{name[:64]}', which is not among the tools.", "tool_choice"
    )


def _parameters(tool: Tool) -> dict[str, Any]:
    """The schema of a function's arguments. What else may be wrong with it, the grammar's compiler says."""
    parameters = tool.function.parameters or {"type": "object"}
    for key in ("$defs", "definitions"):
        if not isinstance(parameters.get(key, {}), dict):
            raise invalid(
                f"The parameters of '{tool.function.name}' have a '{key}' that is no object.", "tools"
            )
    return parameters


def required_schema(tools: Sequence[Tool], *, parallel: bool) -> dict[str, Any]:
    """A schema of a list of calls, at least one.

    Raises:
        ApiError: a tool's parameters are no schema.
    """
    branches = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": moved(_parameters(tool), f"#/items/anyOf/{i}/properties/arguments"),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for i, tool in enumerate(tools)
    ]
    return {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_CALLS if parallel else 1,
        "items": {"anyOf": branches},
    }


def instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    """Text for the system message of a model whose template says nothing of tools."""
    return INSTRUCTIONS.format(tools="\n".join(json.dumps(it, ensure_ascii=False) for it in tools))
