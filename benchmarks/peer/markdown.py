"""Tables and numbers."""

from __future__ import annotations

from .measure import median


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown; cells hold no pipes."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(it.replace("|", "/") for it in line) + " |" for line in lines)


def number(value: float) -> str:
    """Three digits and more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def spread(values: list[float]) -> str:
    return f"{number(median(values))} ({number(max(values))})"
