"""The table itself."""

from __future__ import annotations

from collections.abc import Callable

from optpipe.program.program import Node

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
