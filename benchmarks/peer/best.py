"""The best peer of a cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .forms import ENGINE, FORMS
from .measure import median

Record = dict[str, Any]


@dataclass(frozen=True)
class Best:
    """The best peer of a cell, and ours beside it in the same run."""

    peer: str
    record: Record
    cell: str

    @property
    def rate(self) -> float:
        """The peer's median, tokens a second."""
        return median(self.record["peer"][self.cell])

    def ours(self, name: str) -> float:
        """The median of one of ours."""
        return median(self.record["ours"][name][self.cell])


def best_of(data: dict[str, Any], model: str, cell: str, eight_bits: bool) -> Best | None:
    """The fastest of all peers and their variants: of 8 bits, or of everything else."""
    found = [
        Best(peer, record, cell)
        for peer, record in records(data, model)
        if peer != ENGINE and (record["form"] == "int8-8") is eight_bits
    ]
    return max(found, key=lambda it: it.rate, default=None)


def records(data: dict[str, Any], model: str) -> Iterator[tuple[str, Record]]:
    for peer, variants in data["runs"].get(model, {}).items():
        for record in variants.values():
            if "failed" not in record:
                yield peer, record


def form_text(record: Record) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in record["settings"].items())
    return FORMS[record["form"]].text + (f"; {settings}" if settings else "")
