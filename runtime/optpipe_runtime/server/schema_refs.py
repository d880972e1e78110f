"""A JSON schema that becomes part of another keeps its references, which count from the top of the whole."""

from __future__ import annotations

from typing import Any

# Keywords whose values map names to schemas, and those whose values are no schemas.
_NAMED = frozenset(["properties", "patternProperties", "dependentSchemas", "$defs", "definitions"])
_DATA = frozenset(["const", "enum", "default", "examples"])


def moved(schema: Any, place: str) -> Any:
    """A schema as it must be written at a place inside another.

    Args:
        schema: whose local references, ``#`` and ``#/…``, count from its own top.
        place: a JSON pointer, ``#/items``.
    """
    if isinstance(schema, list):
        return [moved(it, place) for it in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _value(key, value, place) for key, value in schema.items()}


def _value(key: str, value: Any, place: str) -> Any:
    if key == "$ref" and isinstance(value, str):
        return place + value[1:] if value == "#" or value.startswith("#/") else value
    if key in _DATA:
        return value
    if key in _NAMED and isinstance(value, dict):
        return {name: moved(it, place) for name, it in value.items()}
    return moved(value, place)
