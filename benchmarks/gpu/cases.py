"""One row of a table: what is timed, against what floor, beside what else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

Run = Callable[[], object]
REPEATS = 20  # graph replays, of which the median counts
WARM = 3


@dataclass(frozen=True)
class Place:
    """Where cases run.

    Attributes:
        device: a GPU, or the CPU, which interprets: then figures mean nothing and sizes are tiny.
        bandwidth: bytes a second that a copy reads and writes on it.
        rate: operations a second of a large bf16 product on it.
        dry: whether this is a dry run.
    """

    device: torch.device
    bandwidth: float
    rate: float
    dry: bool

    @property
    def dtype(self) -> torch.dtype:
        """What cases compute in: the interpreter has no bfloat16."""
        return torch.float16 if self.dry else torch.bfloat16

    def size(self, wanted: int, tiny: int) -> int:
        """A size, or a tiny one in a dry run."""
        return tiny if self.dry else wanted


@dataclass
class Case:
    """What is timed.

    Attributes:
        name: of the row.
        ours: does the work once on each of several sets of operands, so that no cache keeps them.
        others: the same by other means, by name.
        bytes, operations: the least that the work moves and computes.
        must, stretch: the goals, as a share of the floor's speed; None where there is none.
        beside: which of ``others`` the goals are shares of instead; the floor's where empty.
        check: the relative error of ours against float64, computed once.
        bound: the largest that may be.
    """

    name: str
    ours: Sequence[Run]
    others: dict[str, Sequence[Run]] = field(default_factory=dict)
    bytes: float = 0
    operations: float = 0
    must: float | None = None
    stretch: float | None = None
    beside: str = ""
    check: Callable[[], float] | None = None
    bound: float = 1e-2

    def floor(self, place: Place) -> float:
        """Seconds that no way of doing it is under."""
        return max(self.bytes / place.bandwidth, self.operations / place.rate)


@dataclass
class Row:
    """What came of a case. Seconds; a text says why there is no figure. The note stands beside ours."""

    name: str
    floor: float
    ours: float | str
    others: dict[str, float | str]
    must: float | None
    stretch: float | None
    error: float | None = None
    note: str = ""

    @property
    def reached(self) -> float | None:
        """The share of the floor's speed."""
        return self.floor / self.ours if isinstance(self.ours, float) and self.ours > 0 else None


def run_case(case: Case, place: Place) -> Row:
    """Check, time, and say what went wrong instead of raising: one broken row leaves the others."""
    row = Row(case.name, case.floor(place), "", {}, case.must, case.stretch)
    if case.check is not None:
        try:
            row.error = case.check()
            if not row.error <= case.bound:  # NaN never passes
                row.ours = f"wrong: error {row.error:.1e}, at most {case.bound:.0e}"
                return row
        except Exception as error:
            row.ours = reason(error)
            return row
    row.ours = timed(case.ours, place)
    row.others = {name: timed(runs, place) for name, runs in case.others.items()}
    if case.beside:
        peer = row.others.get(case.beside)
        share = row.floor / peer if isinstance(peer, float) and peer > 0 else None
        row.must, row.stretch = (
            None if share is None or goal is None else goal * share for goal in (case.must, case.stretch)
        )
    return row


def timed(runs: Sequence[Run], place: Place) -> float | str:
    """Seconds of one run, the median over replays of a graph that does each of ``runs`` once."""
    try:
        if place.device.type != "cuda":
            return _called(runs)
        _warm_up(runs)
        return _graphed(runs)
    except Exception as error:
        return reason(error)


def reason(error: Exception) -> str:
    """Why there is no figure, in a line."""
    return (
        f"{type(error).__name__}: {str(error).splitlines()[0][:90]}" if str(error) else type(error).__name__
    )


def _called(runs: Sequence[Run]) -> float:
    begun = time.perf_counter()
    for run in runs[:1]:
        run()
    return time.perf_counter() - begun


def _warm_up(runs: Sequence[Run]) -> None:
    """Compile, make workspaces, and fail outside a capture, which would not survive it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for run in runs:
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


def _graphed(runs: Sequence[Run]) -> float:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    found = []
    for _ in range(WARM):
        graph.replay()
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3 / len(runs))
    return sorted(found)[REPEATS // 2]


def copies(bytes_each: float, place: Place) -> int:
    """How many sets of operands it takes so that a cache of 60 MB keeps none of them."""
    return 1 if place.dry else max(2, min(16, math.ceil(160e6 / max(bytes_each, 1))))


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """‖found − exact‖ / ‖exact‖, in float64."""
    exact = exact.double()
    return float((found.double() - exact).norm() / exact.norm())
