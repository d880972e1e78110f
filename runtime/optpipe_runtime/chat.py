"""A chat template applied to messages, in a sandbox, as transformers applies it.

A template is a program that came with a model, and is not trusted: it sees only its variables, cannot change
them, and loops, sizes and output are bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from optpipe.errors import RequestError

from .tokenizer import Tokenizer

MAX_LOOPS = 1_000_000  # iterations of all loops of one rendering
MAX_CHARACTERS = 10_000_000  # of one rendering, and of any text or list made by `*` or `%`
MAX_DIGITS = 1_000  # of an exponent's result
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
_WIDE = re.compile(r"\d{4}|\*")


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
    environment = Environment()
    try:
        template = environment.from_string(tokenizer.chat_template)
        return _joined(
            template.generate(**tokenizer.special, **(values | variables), messages=list(messages))
        )
    except _OutOfBoundsError as error:
        raise RequestError(f"The chat template was stopped: {error}.") from error
    except _TEMPLATE_ERRORS as error:
        text = " ".join(str(error).split())
        raise RequestError(
            f"The chat template refuses the messages: {text}.", hint="--raw does without"
        ) from error


class _OutOfBoundsError(Exception):
    """A template did more than any prompt needs."""


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}`` marks the model's turns for training; not here."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox of one rendering: what templates expect, and a budget of loop iterations."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        self.left = MAX_LOOPS
        self.filters["tojson"] = _to_json
        self.filters["_bounded"] = self._bounded
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Put every loop's iterable through the ``_bounded`` filter."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_bounded", [], [], None, None, lineno=loop.lineno)
        return tree

    def _bounded(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.left -= 1
            if self.left < 0:
                raise _OutOfBoundsError(f"its loops ran {MAX_LOOPS} times")
            yield item

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse operands that make huge values."""
        if operator == "*" and any(isinstance(it, str | list | tuple) for it in (left, right)):
            size = _size(left) * _size(right)
            if size > MAX_CHARACTERS:
                raise _OutOfBoundsError(f"it asked for {size} items")
        if operator == "**" and abs(right) * len(str(abs(left))) > MAX_DIGITS:
            raise _OutOfBoundsError("it asked for a number of too many digits")
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise _OutOfBoundsError("it formats text with a width of four digits or more")
        return super().call_binop(context, operator, left, right)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else int(value)


def _joined(pieces: Iterable[str]) -> str:
    text, total = [], 0
    for piece in pieces:
        total += len(piece)
        if total > MAX_CHARACTERS:
            raise _OutOfBoundsError(f"it wrote more than {MAX_CHARACTERS} characters")
        text.append(piece)
    return "".join(text)


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
