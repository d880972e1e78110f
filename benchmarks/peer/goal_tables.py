"""The tables of goals: the same form, ours by default, 8 bits."""

from __future__ import annotations

from typing import Any

from .best import Best, best_of, form_text
from .forms import CELLS, FORMS, PEERS
from .goals import goal
from .markdown import number, spread, table
from .models import MODELS


def same_form(data: dict[str, Any]) -> list[str]:
    """Ours in the form of the best peer, with the goals."""
    parts = [
        "## The same form",
        "Here optpipe has the form of the best peer of the cell, its LM head's bits included, and rounds "
        "activations to 8 bits as the peers do. The bound is what optpipe's matrix products alone allow, run "
        "without the rest of the step in the same run. A goal is a multiple of the best peer or 75 % of the "
        "bound, whichever is less; for SmolLM2 at b=1 it is at least 60 % of the bound.",
    ]
    return parts + _goals(data, eight_bits=False)


def eight_bits(data: dict[str, Any]) -> list[str]:
    parts = [
        "## 8 bits",
        "optpipe: int8 a channel. llama.cpp and OpenVINO: Q8_0, groups of 32. ONNX Runtime: blocks of 32.",
    ]
    return parts + _goals(data, eight_bits=True)


def _goals(data: dict[str, Any], eight_bits: bool) -> list[str]:
    head = ["", "best peer", "its form", "peer", "optpipe", "ratio", "bound", "of bound", "goal", ""]
    parts = []
    for model, it in MODELS.items():
        rows = []
        for cell in CELLS:
            best = best_of(data, model, cell.name, eight_bits)
            if best is not None:
                rows.append(_goal_row(model, cell.name, best))
        if rows:
            parts += [f"### {it.text}", table(head, rows)]
    return parts


def _goal_row(model: str, cell: str, best: Best) -> list[str]:
    name = next(iter(best.record["ours"]))
    ours, bound = best.ours(name), best.record["products"][name][cell]["rate"]
    wanted = goal(model, cell, best.rate, bound)
    return [
        cell,
        PEERS[best.peer].text,
        form_text(best.record),
        spread(best.record["peer"][cell]),
        spread(best.record["ours"][name][cell]),
        f"{ours / best.rate:.2f}",
        number(bound),
        f"{ours / bound:.0%}",
        f"{number(wanted.rate)} ({wanted.why})",
        "reached" if wanted.reached(ours) else "**missed**",
    ]


def default_form(data: dict[str, Any]) -> list[str]:
    head = ["", "best peer", "peer", "optpipe, default", "ratio", "bound", "of bound"]
    parts = [
        "## Our default form",
        f"{FORMS['default'].text}; activations int16. The best peer is that of the table above.",
    ]
    for model, it in MODELS.items():
        rows = []
        for cell in CELLS:
            best = best_of(data, model, cell.name, False)
            name = "default, activations int16"
            if best is not None and name in best.record["ours"]:
                ours, bound = best.ours(name), best.record["products"][name][cell.name]["rate"]
                rates = [spread(best.record["peer"][cell.name]), spread(best.record["ours"][name][cell.name])]
                ratios = [f"{ours / best.rate:.2f}", number(bound), f"{ours / bound:.0%}"]
                rows.append([cell.name, PEERS[best.peer].text, *rates, *ratios])
        if rows:
            parts += [f"### {it.text}", table(head, rows)]
    return parts
