"""The requests of a run: all decided by the seed before the first is sent."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optpipe.errors import RequestError

from .arrivals import Arrivals
from .lengths import LONGEST, Lengths
from .prompts import PromptSource

# What a line of a trace may call them: ours, and those of the Mooncake traces, whose times are milliseconds.
_INPUT, _OUTPUT = ("input_len", "input_length"), ("output_len", "output_length")


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        prompt: token ids, or text.
        output_len: tokens wanted.
        arrival: seconds after the beginning; None in a closed loop.
    """

    prompt: str | list[int]
    output_len: int
    arrival: float | None


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What requests look like.

    Attributes:
        inputs, outputs: tokens of prompts and of answers.
        shared_prefix: tokens that prompts of a group have in common, of their length; the last token is
            always the prompt's own.
        prefix_groups: how many beginnings there are.
    """

    inputs: Lengths
    outputs: Lengths
    shared_prefix: int = 0
    prefix_groups: int = 1


@dataclass(frozen=True)
class TraceLine:
    """A line of a trace: lengths, and when it came (seconds; None where the trace does not say)."""

    input_len: int
    output_len: int
    arrival: float | None
    prompt: str | None = None


@dataclass
class Workload:
    """Makes requests; the same seed gives the same ones.

    Attributes:
        prompts: where prompts come from.
        shape: their lengths.
        seed: of everything random.
    """

    prompts: PromptSource
    shape: Shape
    seed: int = 0
    _prefixes: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.shape.shared_prefix:
            source = random.Random(f"{self.seed} prefixes")
            for _ in range(self.shape.prefix_groups):
                self._prefixes.append(self.prompts.draw(self.shape.shared_prefix, source))

    def requests(self, count: int, arrivals: Arrivals, *, name: str = "measured") -> list[Request]:
        """``count`` requests; those of another name are others, for warming up."""
        source = random.Random(f"{self.seed} {name}")
        planned = arrivals.plan(count, random.Random(f"{self.seed} {name} arrivals"))
        return [Request(self._prompt(source), self.shape.outputs.draw(source), at) for at in planned]

    def replay(self, trace: list[TraceLine], arrivals: Arrivals, *, timed: bool = True) -> list[Request]:
        """The requests of a trace.

        Args:
            arrivals: used where the trace has no times, or these are not wanted.
            timed: whether the trace's own times are wanted.
        """
        source = random.Random(f"{self.seed} trace")
        planned = arrivals.plan(len(trace), random.Random(f"{self.seed} trace arrivals"))
        timed = timed and all(it.arrival is not None for it in trace)
        return [
            Request(
                self._prompt(source, line.input_len) if line.prompt is None else line.prompt,
                line.output_len,
                line.arrival if timed else at,
            )
            for line, at in zip(trace, planned, strict=True)
        ]

    def _prompt(self, source: random.Random, length: int | None = None) -> Any:
        wanted = self.shape.inputs.draw(source) if length is None else length
        if not self._prefixes:
            return self.prompts.draw(wanted, source)
        prefix = source.choice(self._prefixes)
        if isinstance(prefix, str):
            return f"{prefix} {self.prompts.draw(max(1, wanted - self.shape.shared_prefix), source)}"
        shared = prefix[: wanted - 1]
        return shared + self.prompts.draw(wanted - len(shared), source)


def read_trace(path: Path, most: int | None = None) -> list[TraceLine]:
    """A trace: JSON objects, one a line; ``input_len`` (or ``prompt``), ``output_len``, ``arrival`` (s).

    ``input_length``, ``output_length`` and ``timestamp`` in milliseconds (Mooncake's names) are understood
    too; what else a line has is not used. Times count from the first line's.

    Raises:
        RequestError: a line is no such object, or there is none.
    """
    found: list[TraceLine] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if most is not None and len(found) == most:
                break
            if line.strip():
                found.append(_trace_line(line, f"{path}, line {number}"))
    if not found:
        raise RequestError(f"The trace '{path}' is empty.")
    first = min(it.arrival or 0.0 for it in found)
    return [
        it if it.arrival is None else TraceLine(it.input_len, it.output_len, it.arrival - first, it.prompt)
        for it in found
    ]


def _trace_line(text: str, where: str) -> TraceLine:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RequestError(f"{where}: a line of a trace is a JSON object.")
    prompt = value.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise RequestError(f"{where}: the prompt must be text.")
    length = 1 if prompt is not None else _count(value, _INPUT, where)
    arrival = value.get("arrival")
    if arrival is None and value.get("timestamp") is not None:
        arrival = _number(value["timestamp"], where) / 1000
    time = None if arrival is None else _number(arrival, where)
    return TraceLine(length, _count(value, _OUTPUT, where), time, prompt)


def _count(value: dict[str, Any], names: tuple[str, ...], where: str) -> int:
    found = next((value[name] for name in names if name in value), None)
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= LONGEST:
        raise RequestError(f"{where}: '{names[0]}' must be a whole number from 1 to {LONGEST}.")
    return found


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise RequestError(f"{where}: the time of arrival must be a number that is not negative.")
    return float(value)
