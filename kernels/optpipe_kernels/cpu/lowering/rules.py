"""The table of rules: which function lowers which operation of a Program."""

from __future__ import annotations

from collections.abc import Callable

from optpipe.program.program import Arg, Node

from .builder import Builder, Unsupported

Rule = Callable[[Builder, Node], None]

RULES: dict[str, Rule] = {}


def lowers(*ops: str) -> Callable[[Rule], Rule]:
    """Declare the rule of one or more operations."""

    def declare(rule: Rule) -> Rule:
        for op in ops:
            assert op not in RULES, f"{op} has two rules"
            RULES[op] = rule
        return rule

    return declare


def argument(node: Node, index: int, name: str, default: Arg = None) -> Arg:
    """An argument by place or by name."""
    if index < len(node.args):
        return node.args[index]
    return node.kwargs.get(name, default)


def integer(node: Node, index: int, name: str, default: int | None = None) -> int:
    """An argument that must be a plain integer."""
    value = argument(node, index, name, default)
    if not isinstance(value, int):
        raise Unsupported(f"'{name}' of {node.op} is {value}")
    return int(value)


def number(value: Arg) -> float:
    """A scalar argument as the kernels take it."""
    if not isinstance(value, int | float):
        raise Unsupported(f"{value} is no number")
    return float(value)


def dimension(index: int, rank: int) -> int:
    """A dimension counted from the front."""
    return index + rank if index < 0 else index
