"""What shape a request wants its text in. Compiling it is grammar.py's work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optpipe.errors import RequestError

from . import checks

MAX_SOURCE_CHARACTERS = 262_144  # of a schema, expression or grammar as text
MAX_NESTING = 100  # of a JSON schema; deeper ones exhaust the stack of whoever walks them

Kind = Literal["json_schema", "regex", "grammar", "json_object"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutput:
    """Exactly one shape that the text must have.

    Attributes:
        json_schema: a JSON schema, as text or as the value itself; kept as text.
        regex: a regular expression that the whole text matches (no look-around, no back-references).
        grammar: a context-free grammar in Lark's notation whose start rule is ``start``.
        json_object: whether the text must be any JSON object.

    Raises:
        RequestError: none or several are given, or one is malformed, too long or nests too deep.
    """

    json_schema: str | Mapping[str, Any] | bool | None = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool = False

    def __post_init__(self) -> None:
        checks.flag("json_object", self.json_object)
        given = [it is not None for it in (self.json_schema, self.regex, self.grammar)] + [self.json_object]
        if sum(given) != 1:
            raise RequestError(
                "Structured output needs exactly one of json_schema, regex, grammar and json_object, "
                f"got {sum(given)} of them."
            )
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", _schema_text(self.json_schema))
        for name, text in (("regex", self.regex), ("grammar", self.grammar)):
            if text is not None:
                _check_text(name, text)

    @property
    def kind(self) -> Kind:
        """Which of them is given."""
        if self.json_schema is not None:
            return "json_schema"
        if self.regex is not None:
            return "regex"
        return "grammar" if self.grammar is not None else "json_object"

    @property
    def source(self) -> str:
        """The text to compile; empty for ``json_object``."""
        return str(self.json_schema or self.regex or self.grammar or "")


def _schema_text(schema: object) -> str:
    if isinstance(schema, str):
        _check_text("json_schema", schema)
    _check_depth(schema)
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps({} if value is True else value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"json_schema is no JSON: {str(error) or 'it nests too deep'}.") from None
    if not isinstance(value, Mapping | bool):
        raise RequestError(f"json_schema must be an object, got {checks.kind(value)}.")
    _check_text("json_schema", text)
    return text


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise RequestError(f"{name} must be text, got {checks.kind(text)}.")
    if not text.strip():
        raise RequestError(f"{name} is empty.")
    if len(text) > MAX_SOURCE_CHARACTERS:
        raise RequestError(f"{name} may have {MAX_SOURCE_CHARACTERS} characters at most, got {len(text)}.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{name} holds half of a surrogate pair, which is no text.") from None


def _check_depth(schema: object) -> None:
    """Refuse deep nesting before anything walks the value recursively."""
    if isinstance(schema, str):
        if _text_depth(schema) > MAX_NESTING:
            raise RequestError(f"json_schema nests over {MAX_NESTING} levels deep.")
        return
    layer: list[object] = [schema]
    for _ in range(MAX_NESTING + 1):
        children = (c for it in layer if isinstance(it, Mapping | list | tuple) for c in _children(it))
        layer = [it for it in children if isinstance(it, Mapping | list | tuple)]
        if not layer:
            return
    raise RequestError(f"json_schema nests over {MAX_NESTING} levels deep.")


def _children(value: Mapping[str, Any] | list[Any] | tuple[Any, ...]) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else list(value)


def _text_depth(text: str) -> int:
    """How deep brackets nest; those inside strings do not count."""
    depth = deepest = 0
    inside = escaped = False
    for character in text:
        if inside:
            inside = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            inside = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest
