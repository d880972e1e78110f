"""The text of a pipeline, both ways: ``quant{bits=4 group=32},paged{block=16}``.

Options are the dataclass fields of a pass. What prints parses back to equal passes; only options that
differ from their default are printed.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from ..errors import PipelineError, nearest
from .base import Pass

_ITEM = re.compile(
    r"\s*(?P<name>[A-Za-z0-9_.-]+)\s*(?:\{(?P<options>(?:[^{}\"]|\"(?:[^\"\\]|\\.)*\")*)\})?\s*(?P<end>,|$)"
)
_OPTION = re.compile(r"\s*(?P<key>[A-Za-z0-9_-]+)=(?P<value>\"(?:[^\"\\]|\\.)*\"|[^\s\"]+)")


def parse_pipeline(text: str, known: Mapping[str, type[Pass]]) -> tuple[Pass, ...]:
    """Passes with their options, in the order written.

    >>> parse_pipeline("", {})
    ()

    Raises:
        PipelineError: an unknown pass or option (with the nearest match), a bad value, a repeated pass.
    """
    passes: list[Pass] = []
    at = 0
    while at < len(text) and text[at:].strip():
        found = _ITEM.match(text, at)
        if found is None or (found["end"] == "," and not text[found.end() :].strip()):
            raise PipelineError(
                f"The pipeline cannot be read at '{text[at : at + 20]}'.",
                hint='it is written like "quant{bits=4 group=32},paged"',
            )
        name = found["name"]
        if name not in known:
            raise PipelineError(
                f"There is no pass named '{name}'.", hint=nearest(name, known) or _list(known)
            )
        if any(name == p.name for p in passes):
            raise PipelineError(f"The pass '{name}' is named twice.")
        passes.append(make_pass(known[name], _options(name, found["options"] or "")))
        at = found.end()
    return tuple(passes)


def print_pipeline(passes: Sequence[Pass]) -> str:
    """The text that parses back to ``passes``."""
    return ",".join(print_pass(p) for p in passes)


def print_pass(instance: Pass) -> str:
    """One pass with the options that differ from their defaults."""
    options = [
        f"{field.name}={_show(getattr(instance, field.name))}"
        for field in dataclasses.fields(instance)
        if getattr(instance, field.name) != default_of(field)
    ]
    return f"{instance.name}{{{' '.join(options)}}}" if options else instance.name


def make_pass(cls: type[Pass], options: Mapping[str, str]) -> Pass:
    """A pass from option texts.

    Raises:
        PipelineError: an unknown option or a value that its field's type does not take.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for key, text in options.items():
        key = key.replace("-", "_")
        if key not in fields:
            hint = nearest(key, fields) or (
                f"its options are {_list(fields)}" if fields else "it has no options"
            )
            raise PipelineError(f"The pass '{cls.name}' has no option '{key}'.", hint=hint)
        unset = text == fields[key].metadata.get("none")
        values[key] = None if unset else _read(cls.name, key, text, hints[key])
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise PipelineError(f"The pass '{cls.name}' refuses its options: {error}.") from error


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default, or MISSING."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _options(name: str, text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    at = 0
    while text[at:].strip():
        found = _OPTION.match(text, at)
        if found is None:
            raise PipelineError(
                f"The options of '{name}' cannot be read at '{text[at:].strip()}'.",
                hint="options are written key=value, with spaces between them",
            )
        if found["key"] in options:
            raise PipelineError(f"The option '{found['key']}' of '{name}' is given twice.")
        options[found["key"]] = _unquoted(name, found["value"])
        at = found.end()
    return options


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        value = "|".join(map(str, value))
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return json.dumps(text, ensure_ascii=False) if not text or re.search(r"[\s,{}\"]", text) else text


def _unquoted(name: str, text: str) -> str:
    """An option's text without its quotes, which are JSON's."""
    try:
        return str(json.loads(text)) if text.startswith('"') else text
    except ValueError:
        raise PipelineError(f"The options of '{name}' quote {text} in a way that cannot be read.") from None


def _read(owner: str, key: str, text: str, hint: Any) -> Any:
    """``text`` as a value of the type ``hint``."""
    choices = _alternatives(hint)
    for choice in sorted(choices, key=lambda kind: kind is str):  # text takes anything, "none" too
        value = _as(choice, text)
        if value is not _NO:
            return value
    wanted = " or ".join(dict.fromkeys(_describe(choice) for choice in choices))
    raise PipelineError(f"The option '{key}' of '{owner}' must be {wanted}, got '{text}'.")


_NO = object()


def _alternatives(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [single for part in typing.get_args(hint) for single in _alternatives(part)]
    if typing.get_origin(hint) is Literal:
        return [Literal[value] for value in typing.get_args(hint)]
    return [hint]


def _as(kind: Any, text: str) -> Any:
    if typing.get_origin(kind) is Literal:
        value = typing.get_args(kind)[0]
        return value if text == str(value) else _NO
    if typing.get_origin(kind) is tuple:
        return tuple(text.split("|")) if text else ()
    if kind is type(None):
        return None if text in ("none", "None") else _NO
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), _NO)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return _NO
    return text if kind is str else _NO


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return str(typing.get_args(kind)[0])
    if typing.get_origin(kind) is tuple:
        return "names joined by '|'"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return names.get(kind, str(kind))


def _list(names: Iterable[str]) -> str:
    return "known: " + ", ".join(sorted(names))
