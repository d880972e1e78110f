"""Where benchmarks leave their figures: ``benchmarks/results/NAME.json``, and the same as tables beside it.

Both are written by the benchmark that measured them, and by nobody else.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
Rows = Sequence[Mapping[str, Any]]


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [it.partition(":")[2].strip() for it in lines if it.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def write(name: str, title: str, command: str, note: str, tables: Mapping[str, Rows]) -> None:
    """Write the figures of one benchmark.

    Args:
        name: of the files.
        title, note: of the page; the note says what the columns are.
        command: that measures them.
        tables: heading → rows, each with the same columns.
    """
    facts = machine()
    RESULTS.mkdir(exist_ok=True)
    data = {"command": command, "machine": facts, "tables": tables}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    where = f"{facts['processor']}, {facts['cores']} cores, Python {facts['python']}"
    parts = [f"# {title}", f"Written by `{command}` on {where}. {note}"]
    for heading, rows in tables.items():
        parts += [f"## {heading}", markdown(rows)]
    (RESULTS / f"{name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def markdown(rows: Rows) -> str:
    """A table; numbers have three digits that count."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_cell(row[it]) for it in names] for row in rows)]
    return "\n".join(f"| {' | '.join(it)} |" for it in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")
