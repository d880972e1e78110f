"""The table itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from optpipe.program.program import Node, Value

from ..converter import Converter

Rule = Callable[[Converter, Node], None]

RULES: dict[str, Rule] = {}


def maps(*ops: str) -> Callable[[Rule], Rule]:
    """Declare the mapping of one or more operations."""

    def declare(rule: Rule) -> Rule:
        for op in ops:
            assert op not in RULES, f"{op} has two mappings"
            RULES[op] = rule
        return rule

    return declare


def sizes_of(value: Value) -> tuple[int, int]:
    """Heads and their width of a value [T, H, D]."""
    heads, width = value.type.shape[1:]
    return cast("int", heads), cast("int", width)
