"""A chat template applied to messages, as transformers applies it, in a sandbox with a budget."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2

from optpipe.errors import RequestError

from .template_sandbox import Budget, Environment, OutOfBoundsError
from .tokenizer import Tokenizer

_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)


def render_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """The prompt for a chat whose next turn is the model's.

    Args:
        tokenizer: has the template and the special tokens that it names.
        messages: ``{"role": "user", "content": "…"}`` and so on.
        variables: more variables for the template (``tools``, ``enable_thinking``, …).

    Raises:
        RequestError: there is no template, or it refuses the messages, or is wrong, or runs out of bounds.
    """
    if tokenizer.chat_template is None:
        raise RequestError("The model has no chat template.", hint="--raw continues plain text")
    values = {"add_generation_prompt": True, "tools": None, "documents": None}
    values |= variables
    environment = Environment(Budget(_bytes([*messages, *values.values()])), {"tojson": _to_json})
    environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
    try:
        template = environment.from_string(tokenizer.chat_template)
        return template.render(**tokenizer.special, **values, messages=list(messages))
    except OutOfBoundsError as error:
        raise RequestError(f"The chat template was stopped: {error}.") from error
    except _TEMPLATE_ERRORS as error:
        text = " ".join(str(error).split()).rstrip(".")
        raise RequestError(
            f"The chat template refuses the messages: {text}.", hint="--raw does without"
        ) from error


def _bytes(value: Any) -> int:
    """Bytes of what a person gave, written out."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return sum(map(_bytes, value))
    return len(value) if isinstance(value, str) else 8


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: no HTML escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
