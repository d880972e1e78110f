"""optpipe's ONNX export beside the model that ONNX Runtime GenAI's own builder writes."""

from __future__ import annotations

from typing import Any

from .best import Record, records
from .forms import CELLS, FORMS
from .markdown import spread, table
from .measure import EXPORTED, median
from .models import MODELS

TEXT = (
    "The same weights in the same bits, run in turn: the builder's folder and optpipe's, both by ONNX "
    "Runtime GenAI's generator, and optpipe's by its own `onnx` target. Activations have 8 bits "
    "(`accuracy_level` 4), and logits are those of each sequence's last token. The goal is not to be slower "
    "than the builder's."
)


def exported(data: dict[str, Any]) -> list[str]:
    """A table a model, or nothing before the first measurement."""
    head = ["form", "", "builder", "export", "ratio", "`onnx` target", "ratio"]
    parts = []
    for model, it in MODELS.items():
        found = [record for _, record in records(data, model) if "exported" in record]
        rows = [_row(record, cell.name) for record in found for cell in CELLS]
        if rows:
            parts += [f"### {it.text}", table(head, rows)]
    return ["## The ONNX export", TEXT, *parts] if parts else []


def _row(record: Record, cell: str) -> list[str]:
    builder = record["exported"]["builder"][cell]
    columns = [FORMS[record["form"]].text, cell, spread(builder)]
    for name in EXPORTED:
        rates = record["exported"][name][cell]
        columns += [spread(rates), f"{median(rates) / median(builder):.2f}"]
    return columns
