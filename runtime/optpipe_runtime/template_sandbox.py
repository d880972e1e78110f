"""Where a chat template runs: it sees only its variables, cannot change them, and has a budget.

A template is a program that came with a model. jinja2's sandbox keeps it from everything that it was not
given, and not from taking a machine's memory and time. Here everything that it does is paid for:

    made    bytes of text and lists it makes, all of them together, whether it keeps them or not
    read    bytes of text and items it goes through
    turns   of loops, and calls

What can grow (a product, padding, replacing, joining, formatting, …) is paid before it is made.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MADE_BYTES = 48 << 20
READ_BYTES = 96 << 20
TURNS = 300_000
ITEM_BYTES = 64  # what an entry of a list is taken for
LOOK_BYTES = 256  # what looking at a value costs, in bytes of text gone through in that time
FILTER_LOOKS = 4  # what a filter costs besides what it reads
CALL_TURNS = 6  # what a call costs, in turns of a loop
MAX_NUMBER = 100_000  # of an argument of a filter or of a text's method: a width, a count
MAX_BITS = 20_000  # of a product or power
_WIDE = re.compile(r"\d{4}|\*|\{[^{}]*\{")  # a width of four digits, from an operand, or from another field
_REMOVED = ("lipsum", "pprint", "striptags", "urlize", "wordwrap", "xmlattr")
_CLOSED = ("to_bytes", "from_bytes", "expandtabs", "translate", "maketrans", "encode")
_SHALLOW = frozenset(
    {"attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map", "random"}
    | {"reject", "rejectattr", "reverse", "select", "selectattr", "slice"}
)
_PASSING = frozenset({"attr", "d", "default", "first", "last", "max", "min", "random"})
# bytes that a filter may make of one character
_GROWS = {"e": 6, "escape": 6, "forceescape": 6, "urlencode": 12, "upper": 3, "title": 3, "capitalize": 3}
_GROWS |= dict.fromkeys(("dictsort", "groupby", "list", "sort", "unique"), ITEM_BYTES)


class OutOfBoundsError(Exception):
    """A template did more than any prompt needs."""


class Budget:
    """What one rendering may still make, read and run.

    Args:
        given: bytes that it was given; a long conversation may cost more than a short one.
    """

    def __init__(self, given: int = 0) -> None:
        self.made = MADE_BYTES + 16 * given
        self.read = READ_BYTES + 64 * given
        self.turns = TURNS

    def make(self, size: int) -> None:
        """Pay for something that is made."""
        self.made -= size
        if self.made < 0:
            raise OutOfBoundsError("it makes more text than any prompt has")

    def go_through(self, size: int) -> None:
        """Pay for something that is read."""
        self.read -= size
        if self.read < 0:
            raise OutOfBoundsError("it goes through more text than any prompt has")

    def pay_for(self, value: Any) -> int:
        """Pay for going through a value, but not through what it holds; its bytes."""
        size = own_size(value)
        self.go_through(size)
        return size

    def turn(self, count: int = 1) -> None:
        """Pay for a turn of a loop, or for a call, which counts as several."""
        self.turns -= count
        if self.turns < 0:
            raise OutOfBoundsError(f"its loops and calls take more than {TURNS} turns")

    def weigh(self, value: Any) -> int:
        """Bytes of a value written out, everything in it as often as it stands there; paid for as read."""
        total, looks, waiting = 0, 0, [value]
        while waiting and total + looks * LOOK_BYTES <= self.read:
            item = waiting.pop()
            looks += 1
            total += own_size(item, deep=True)
            if isinstance(item, Mapping):
                waiting.extend(item)
                waiting.extend(item.values())
            elif isinstance(item, list | tuple | set | frozenset):
                waiting.extend(item)
        self.go_through(total + looks * LOOK_BYTES)
        return total


def own_size(value: Any, *, deep: bool = False) -> int:
    """Bytes of a value without what it holds; with ``deep``, its entries are left to the caller."""
    if isinstance(value, str | bytes):
        return sys.getsizeof(value)
    if not deep and hasattr(type(value), "__len__"):
        return ITEM_BYTES * (1 + len(value))
    return ITEM_BYTES


class _Opaque(Namespace):
    """``namespace()``, whose text does not show what it holds."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}`` marks the model's turns for training; not here."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _PaidNodes(NodeTransformer):
    """Put what has no hook of its own through filters that take the price."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2 names it
        self.generic_visit(node)
        node.iter = _through("_turns", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - jinja2 names it
        self.generic_visit(node)
        return _through("_concatenated", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802 - jinja2 names it
        self.generic_visit(node)
        node.expr = _through("_read", node.expr)
        for operand in node.ops:
            operand.expr = _through("_read", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 - jinja2 names it
        self.generic_visit(node)
        return _through("_made", node) if isinstance(node.arg, nodes.Slice) else node

    def _literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _through("_made", node)

    visit_List = visit_Tuple = visit_Dict = _literal  # noqa: N815


def _through(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox of one rendering."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, budget: Budget, filters: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=self._finalized,
        )
        self.budget = budget
        self.concat: Any = self._joined
        self.globals["namespace"] = _Opaque
        self.filters.update(filters)
        for name in _REMOVED:
            self.filters.pop(name, None)
            self.globals.pop(name, None)
        self.filters = {name: self._paid_filter(name, filter_) for name, filter_ in self.filters.items()}
        self.tests = {name: self._paid_test(test) for name, test in dict[str, Any](self.tests).items()}
        self.filters |= {
            "_turns": self._turns,
            "_concatenated": self._concatenated,
            "_read": self._read,
            "_made": self._made,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _PaidNodes().visit(super()._parse(source, name, filename))
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Some methods of numbers and texts make huge values of small ones, and no template needs them."""
        return attr not in _CLOSED and super().is_safe_attribute(obj, attr, value)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """A tuple is gone through to be looked up."""
        if isinstance(argument, tuple):
            self.budget.weigh(argument)
        return super().getitem(obj, argument)

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call costs a turn, its arguments and its result."""
        self.budget.turn(CALL_TURNS)
        for given in (*args, *kwargs.values()):
            self.budget.pay_for(given)
        method = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes):
            self._pay_for_method(owner, str(getattr(method, "__name__", "")), args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str | list | tuple | dict) and not isinstance(owner, dict):
            self.budget.make(own_size(result))
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Products, powers, sums and formatted texts are paid before they are made."""
        if operator == "%" and isinstance(left, str):
            self._pay_for_format(left, (right,))
        elif operator == "+" and _is_sized(left):
            self.budget.make(own_size(left) + own_size(right))
        elif operator == "*" and (_is_sized(left) or _is_sized(right)):
            text, count = (left, right) if _is_sized(left) else (right, left)
            self.budget.make((own_size(text) - own_size(type(text)())) * max(int(count), 0))
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise OutOfBoundsError("it asks for a number of too many digits")
        return super().call_binop(context, operator, left, right)

    def _finalized(self, value: Any) -> Any:
        if not isinstance(value, str):
            self.budget.make(self.budget.weigh(value))
        return value

    def _joined(self, pieces: Iterable[str]) -> str:
        parts = list(pieces)
        self.budget.make(sum(map(len, parts)))
        return "".join(parts)

    def _concatenated(self, parts: list[Any]) -> str:
        self.budget.make(sum(map(self.budget.weigh, parts)))
        return "".join(map(str, parts))

    def _made(self, value: Any) -> Any:
        self.budget.make(self.budget.weigh(value))
        return value

    def _read(self, value: Any) -> Any:
        if _is_sized(value) or isinstance(value, Mapping):
            self.budget.weigh(value)
        return value

    def _turns(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.budget.turn()
            yield item

    def _paid_test(self, test: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(test)
        def paid(*args: Any, **kwargs: Any) -> Any:
            for given in args:
                self._read(given)
            return test(*args, **kwargs)

        return paid

    def _paid_filter(self, name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
        skip = int(hasattr(filter_, "jinja_pass_arg"))
        signature = inspect.signature(filter_) if name in _PRICES else None

        @functools.wraps(filter_)
        def paid(*args: Any, **kwargs: Any) -> Any:
            value, rest = args[skip], (*args[skip + 1 :], *kwargs.values())
            size = self.budget.pay_for(value) if name in _SHALLOW else self.budget.weigh(value)
            self.budget.go_through(FILTER_LOOKS * LOOK_BYTES)
            _check_numbers(rest)
            if (
                isinstance(value, str | bytes)
                and name in _GROWS
                and len(value) * _GROWS[name] > self.budget.made
            ):
                raise OutOfBoundsError("it makes more text than any prompt has")
            if signature is not None:
                given = signature.bind(*args, **kwargs)
                given.apply_defaults()
                _PRICES[name](self, size, *list(given.arguments.values())[skip:])
            result = filter_(*args, **kwargs)
            if name not in _PASSING and isinstance(result, str | list | tuple | dict):
                self.budget.make(own_size(result))
            return result

        return paid

    def _pay_for_method(self, owner: str | bytes, name: str, args: Any, kwargs: Any) -> None:
        given = (*args, *kwargs.values())
        self.budget.go_through(len(owner))
        if name in ("format", "format_map"):
            self._pay_for_format(str(owner), given)
        elif name == "replace" and len(given) >= 2:
            self._pay_for_replace(0, owner, *given[:2])
        elif name == "join" and given and isinstance(given[0], Iterable):
            self._pay_for_join(self.budget.weigh(given[0]), given[0], owner)
        elif name in ("split", "rsplit", "splitlines", "partition"):
            self.budget.make(2 * len(owner))
        elif name not in ("find", "rfind", "index", "rindex", "count", "startswith", "endswith"):
            _check_numbers(given)

    def _pay_for_format(self, text: str, operands: tuple[Any, ...]) -> None:
        if _WIDE.search(text):
            raise OutOfBoundsError("it formats text with a width of four digits or more")
        fields = text.count("%") + text.count("{")
        self.budget.make(len(text) + fields * (MAX_NUMBER // 100 + sum(map(self.budget.weigh, operands))))

    def _pay_for_replace(self, size: int, text: Any, old: Any, new: Any, *_: Any) -> None:
        text, old, new = (it if isinstance(it, str | bytes) else str(it) for it in (text, old, new))
        count = text.count(old) if old else len(text) + 1
        self.budget.make(len(text) + count * len(new))

    def _pay_for_join(self, size: int, items: Any, between: Any = "", *_: Any) -> None:
        if not hasattr(type(items), "__len__"):
            return  # a generator: its items are paid where they come from
        self.budget.make(size + len(items) * len(str(between)))

    def _pay_for_indent(self, size: int, text: Any, width: Any, *_: Any) -> None:
        lines = str(text).count("\n") + 1
        self.budget.make(size + lines * (width if isinstance(width, int) else len(str(width))))

    def _pay_for_json(self, size: int, value: Any, *options: Any) -> None:
        if any(isinstance(it, int) and it > 16 for it in options) or self.budget.weigh(options) > 1024:
            raise OutOfBoundsError("it indents JSON by more than 16 spaces")
        self.budget.make(6 * size)

    def _pay_for_formatted(self, size: int, text: Any, args: Any, kwargs: Any) -> None:
        self._pay_for_format(str(text), (*args, *kwargs.values()))

    def _pay_for_sum(self, size: int, items: Any, attribute: Any = None, start: Any = 0) -> None:
        if not isinstance(start, int | float):
            raise OutOfBoundsError("it sums up what are no numbers")


_PRICES: dict[str, Callable[..., None]] = {
    "replace": Environment._pay_for_replace,
    "join": Environment._pay_for_join,
    "indent": Environment._pay_for_indent,
    "tojson": Environment._pay_for_json,
    "format": Environment._pay_for_formatted,
    "sum": Environment._pay_for_sum,
}


def _is_sized(value: Any) -> bool:
    return isinstance(value, str | bytes | list | tuple)


def _check_numbers(given: Iterable[Any]) -> None:
    for number in given:
        if isinstance(number, int) and abs(number) > MAX_NUMBER:
            raise OutOfBoundsError(f"it asks for a width or a count of {number}")
