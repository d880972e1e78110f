"""One row of a table: what is timed, against what floor, beside what else."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from .limits import OverTimeError

Run = Callable[[], object]
REPEATS = 20  # graph replays, of which the median counts; of long ones fewer
FEWEST = 5
WARM = 0.03  # seconds of replays before any counts: the chip leaves its idle clocks
LEAST = 1e-3  # seconds of a replay, so that its start is noise
MOST = 0.4  # seconds of all replays of one figure, about
ROUNDS = 50  # at most, of the runs in a graph


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
    try:
        _measure(case, row, place)
    except OverTimeError as error:  # what was measured by then stays
        row.ours = row.ours or str(error)
    if case.beside:
        peer = row.others.get(case.beside)
        share = row.floor / peer if isinstance(peer, float) and peer > 0 else None
        row.must, row.stretch = (
            None if share is None or goal is None else goal * share for goal in (case.must, case.stretch)
        )
    return row


def _measure(case: Case, row: Row, place: Place) -> None:
    """Fill a row."""
    if case.check is not None:
        try:
            row.error = case.check()
        except OverTimeError:
            raise
        except Exception as error:
            row.ours = reason(error)
            return
        if not row.error <= case.bound:  # NaN never passes
            row.ours = f"wrong: error {row.error:.1e}, at most {case.bound:.0e}"
            return
    row.ours = timed(case.ours, place)
    for name, runs in case.others.items():
        row.others[name] = timed(runs, place)


def timed(runs: Sequence[Run], place: Place) -> float | str:
    """Seconds of one run, the median over replays of a graph that does each; or why there is no figure.

    Raises:
        OverTimeError: the part's time was over.
    """
    try:
        if place.device.type != "cuda":
            return _called(runs)
        _warm_up(runs)
        return _graphed(runs)
    except OverTimeError:
        raise
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
    stream = _side()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for run in runs:
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


@functools.cache
def _side() -> torch.cuda.Stream:
    """The stream that warms up and captures: libraries keep a workspace for every stream they have seen."""
    return torch.cuda.Stream()


def _graphed(runs: Sequence[Run]) -> float:
    graph = _captured(runs, 1)
    begun, took = time.perf_counter(), _replayed(graph)
    while time.perf_counter() - begun < WARM:
        took = _replayed(graph)
    rounds, repeats = plan(took)
    if rounds > 1:
        graph = _captured(runs, rounds)
        _replayed(graph)
    found = sorted(_replayed(graph) for _ in range(repeats))
    return found[repeats // 2] / rounds / len(runs)


def plan(took: float) -> tuple[int, int]:
    """How often a graph does its runs, and how often it is replayed, where doing them once takes ``took`` s.

    >>> plan(20e-6), plan(5e-3), plan(0.2)
    ((50, 20), (1, 20), (1, 5))
    """
    rounds = max(1, min(ROUNDS, math.ceil(LEAST / max(took, 1e-9))))
    return rounds, max(FEWEST, min(REPEATS, int(MOST / (rounds * max(took, 1e-9)))))


def _captured(runs: Sequence[Run], rounds: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=_side()):
        for _ in range(rounds):
            for run in runs:
                run()
    return graph


def _replayed(graph: torch.cuda.CUDAGraph) -> float:
    """Seconds between two events around a replay."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def over(function: Callable[..., object], *operands: Sequence[torch.Tensor]) -> list[Run]:
    """A call for each set of operands: the first of every argument, the second, …"""
    return [functools.partial(function, *each) for each in zip(*operands, strict=True)]


def copies(bytes_each: float, place: Place) -> int:
    """How many sets of operands it takes so that a cache of 60 MB keeps none of them."""
    return 1 if place.dry else max(2, min(16, math.ceil(160e6 / max(bytes_each, 1))))


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """‖found − exact‖ / ‖exact‖, in float64."""
    exact = exact.double()
    return float((found.double() - exact).norm() / exact.norm())
