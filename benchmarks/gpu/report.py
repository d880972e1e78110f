"""The page about one GPU: ``benchmarks/results/<gpu>.md``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .cases import Row


def page(facts: Mapping[str, Any], parts: Mapping[str, Any], command: str, *, dry: bool) -> str:
    """The whole page.

    Args:
        facts: about the machine.
        parts: what each part gave: rows, or facts.
        dry: say what ran, and no figure.
    """
    lines = [f"# {facts['gpu']}", "", f"Written by `{command}`.", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    for title, part in parts.items():
        lines += ["", f"## {title}", ""]
        lines += list(_table(part, dry)) if isinstance(part, Sequence) else list(_facts(part))
    return "\n".join(lines) + "\n"


def _facts(part: Mapping[str, Any]) -> Iterator[str]:
    for name, value in part.items():
        yield f"- {name}: {value:.2e}" if isinstance(value, float) else f"- {name}: {value}"


def _table(rows: Sequence[Row], dry: bool) -> Iterator[str]:
    if dry:
        yield from (f"- {row.name}: {row.ours if isinstance(row.ours, str) else 'ran'}" for row in rows)
        return
    yield "| work | floor | ours | of the floor | must | stretch | error | others |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        others = "; ".join(f"{name} {_time(it)}" for name, it in row.others.items())
        cells = (
            row.name, _time(row.floor) if row.floor else "",
            f"{_time(row.ours)}{row.note and ', '}{row.note}", _share(row.reached),
            _share(row.must), _share(row.stretch), "" if row.error is None else f"{row.error:.1e}", others,
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _time(seconds: float | str) -> str:
    if isinstance(seconds, str):
        return seconds.replace("|", "/")
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _share(share: float | None) -> str:
    return "" if not share else f"{share:.0%}"
