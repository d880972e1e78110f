"""A picture of a run: how the values of each metric are distributed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optpipe.errors import OptpipeError

from .record import Record
from .report import ROWS


def check(path: Path) -> None:
    """See that a picture can be drawn, before anything is measured.

    Raises:
        OptpipeError: matplotlib or the folder is missing.
    """
    if not path.absolute().parent.is_dir():
        raise OptpipeError(f"There is no folder '{path.parent}' for the picture.")

    if importlib.util.find_spec("matplotlib") is None:
        raise OptpipeError(
            "--plot needs the package 'matplotlib'.", hint="pip install 'optpipe[bench]' brings it"
        )


def draw(path: Path, records: Sequence[Record], found: Mapping[str, Any]) -> None:
    """Write a PNG with the share of values below each value, for each metric, its p50 and p99 marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(2, 2).flat, _values(records).items(), strict=True):
        ordered = sorted(1000 * it for it in values)
        axes.step(ordered, [(i + 1) / len(ordered) for i in range(len(ordered))], where="post")
        for column, style in (("p50", ":"), ("p99", "--")):
            place = found[ROWS[name]][column]
            if place is not None:
                axes.axvline(place, linestyle=style, color="tab:red", label=f"{column} {place:.1f} ms")
                axes.legend(loc="lower right")
        axes.set(title=name, xlabel="ms", ylim=(0, 1))
    figure.suptitle(f"{found['kind']}: {found['requests']['answered']} requests in {found['seconds']:.1f} s")
    figure.savefig(path, format="png", dpi=120)


def _values(records: Sequence[Record]) -> dict[str, list[float]]:
    good = [it for it in records if it.ok]
    return {
        "TTFT": [it.ttft for it in good],
        "TPOT": [it.tpot for it in good if it.tpot is not None],
        "ITL": [gap for it in good for gap in it.gaps],
        "E2E": [it.e2e for it in good],
    }
