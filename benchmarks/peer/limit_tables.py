"""The tables of limits: the machine, bytes and operations, where the time goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .best import Best, best_of
from .forms import CELLS, PROMPT, Cell
from .markdown import number, table
from .models import MODELS


def machine(facts: dict[str, Any]) -> list[str]:
    if not facts:
        return []
    cache, memory = facts["last_level_cache_bytes"], facts["memory_bytes"]
    size = f"{cache / 2**20:.0f} MiB" if cache else "size unknown"
    used = f"{facts['cores']} cores, {facts['threads']} threads used"
    rows = [
        ["processor", f"{facts['cpu']}, {used}, {facts['isa']}"],
        ["last-level cache", f"{size}, {facts['cache_bytes_per_second'] / 1e9:.1f} GB/s"],
        ["memory", f"{memory / 2**30:.0f} GiB, {facts['memory_bytes_per_second'] / 1e9:.1f} GB/s"],
        ["products of 8-bit numbers", f"{facts['int8_operations_per_second'] / 1e9:,.0f} GOPS"],
        ["measured", facts["at"]],
    ]
    return ["## The machine", table(["", ""], rows)]


def limits(data: dict[str, Any]) -> list[str]:
    """Bytes and operations of each cell, and what the machine's limits make of them."""
    facts = data["machine"]
    if not facts:
        return []
    head = ["", "optpipe's form", "weights", "operations", "by memory", "by products", "alone", "whole step"]
    parts = [
        "## What limits a cell",
        "The weights that a step reads and the operations on 8-bit numbers that its matrix products do; the "
        "tokens a second that the machine's memory and its peak would allow for them (where the last-level "
        "cache holds a part of the weights, more is possible than by memory); what the products reach alone; "
        "and what the whole step reaches.",
    ]
    for model, it in MODELS.items():
        rows = []
        for cell in CELLS:
            for eight in (False, True):
                best = best_of(data, model, cell.name, eight)
                rows += [] if best is None else list(_limit_rows(facts, cell, best))
        if rows:
            parts += [f"### {it.text}", table(head, rows)]
    return parts


def _limit_rows(facts: dict[str, Any], cell: Cell, best: Best) -> Iterator[list[str]]:
    tokens = PROMPT if cell.steps == 0 else cell.batch
    for name, cells in best.record["products"].items():
        work = cells[cell.name]
        yield [
            cell.name,
            name,
            f"{work['bytes'] / 1e6:,.0f} MB",
            f"{work['operations'] / 1e9:,.1f} G",
            number(tokens * facts["memory_bytes_per_second"] / work["bytes"]),
            number(tokens * facts["int8_operations_per_second"] / work["operations"]),
            number(work["rate"]),
            number(best.ours(name)),
        ]


def profiles(data: dict[str, Any]) -> list[str]:
    """Where the time of optpipe's step goes."""
    head = [
        "",
        "optpipe's form",
        "products alone",
        "products",
        "attention",
        "other",
        "outside the plan",
        "step",
    ]
    parts = [
        "## Where the time goes",
        "Milliseconds of a step whose instructions are timed one by one, which takes a little: products "
        "alone, as in the bound; the same ones within a step; attention; norms, rope, rounding and all else; "
        "and what the caller sees beyond the instructions.",
    ]
    for model, it in MODELS.items():
        rows = []
        for cell in CELLS:
            for eight in (False, True):
                best = best_of(data, model, cell.name, eight)
                rows += [] if best is None else list(_profile_rows(cell, best))
        if rows:
            parts += [f"### {it.text}", table(head, rows)]
    return parts


def _profile_rows(cell: Cell, best: Best) -> Iterator[list[str]]:
    tokens = PROMPT if cell.steps == 0 else cell.batch
    for name, cells in best.record.get("profile", {}).items():
        spent = cells[cell.name]
        inside = spent["products"] + spent["attention"] + spent["other"]
        alone = 1e3 * tokens / best.record["products"][name][cell.name]["rate"]
        kinds = (alone, spent["products"], spent["attention"], spent["other"], spent["step"] - inside)
        yield [cell.name, name, *(f"{it:.2f}" for it in (*kinds, spent["step"]))]
