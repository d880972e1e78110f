"""What no kernel of ours does: ATen operations, eager, or several in one by Inductor when that pays.

A run of leftovers that stand behind each other is a segment. Segments of one structure are compiled once,
when that saves at least ``WORTH`` launches a step over all of them: a model's rope tables (five small
operations a step) are not worth a compiler's start, a hand-written GELU in each of thirty layers is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from optpipe.errors import ArtifactError
from optpipe.program.ops import DTYPES, FACTORIES, find_op, why_not_call
from optpipe.program.program import DType, Expr, Value

from .steps import Argument, Step

WORTH = 16  # launches saved a step, some 2 % of a decode step of an 8B model in 4 bits
WIDE = frozenset(
    {"softmax", "_softmax", "log_softmax", "exp", "log", "sum", "mean", "pow", "rsqrt", "sqrt", "reciprocal"}
    | {"sigmoid", "cumsum", "logsumexp"}
)
"""Operations that lose too much in 16 bits: they are given float32, and so give it."""

POINTWISE = frozenset(
    {"add", "sub", "mul", "div", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "reciprocal", "pow", "tanh"}
    | {"sigmoid", "silu", "gelu", "relu", "erf", "sin", "cos", "clamp", "maximum", "minimum", "where"}
    | {"to", "_to_copy", "square", "eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and"}
)
"""Operations that give each element from one element of each operand: compiled, their bits stay."""


def base_of(kernel: str) -> str:
    """``add`` of ``aten.add.Tensor``."""
    return kernel.split(".")[1]


def function_of(step: Step, device: torch.device) -> Callable[..., Any]:
    """What runs one leftover.

    Raises:
        ArtifactError: it is not an operation that a graph may hold.
    """
    op = find_op(step.kernel)
    if (reason := why_not_call(op, step.args, step.kwargs)) is not None:
        raise ArtifactError(f"The cuda target cannot run '{step.kernel}' of '{step.path}': it {reason}.")
    base = base_of(step.kernel)
    if base in FACTORIES:
        return lambda *args, **kwargs: op(*args, device=device, **kwargs)
    if base not in WIDE:
        return op
    return lambda *args, **kwargs: op(*(_widened(arg) for arg in args), **kwargs)


def _widened(arg: Any) -> Any:
    half = isinstance(arg, torch.Tensor) and arg.dtype in (torch.bfloat16, torch.float16)
    return arg.float() if half else arg


@dataclass(frozen=True)
class Segment:
    """Leftovers behind each other that run as one.

    Attributes:
        steps: at least two, pointwise all of them.
        reads: names of the values from outside that they read, in order of first use.
        results: the values that others read.
    """

    steps: tuple[Step, ...]
    reads: tuple[str, ...]
    results: tuple[Value, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for segments that one compiled function can run."""
        names: dict[str, int] = {name: place for place, name in enumerate(self.reads)}
        return tuple(_shape_of(step, names) for step in self.steps), tuple(
            names[value.name] for value in self.results
        )


def _shape_of(step: Step, names: dict[str, int]) -> tuple[Any, ...]:
    """A step with its values numbered; adds its results to ``names``."""

    def of(arg: Argument) -> Any:
        if isinstance(arg, Value):
            return ("value", names[arg.name])
        return ("list", *map(of, arg)) if isinstance(arg, tuple) else arg

    args, kwargs = tuple(map(of, step.args)), tuple((name, of(arg)) for name, arg in step.kwargs.items())
    for value in step.results:
        names[value.name] = len(names)
    return (step.kernel, args, kwargs)


def segments(steps: Sequence[Step], output: str) -> dict[int, Segment]:
    """The segments that pay, by the place of their first step.

    Args:
        output: name of the value that the model gives.
    """
    found = dict(_runs(steps, output))
    saved: Counter[tuple[Any, ...]] = Counter()
    for segment in found.values():
        saved[segment.key] += len(segment.steps) - 1
    return {place: segment for place, segment in found.items() if saved[segment.key] >= WORTH}


def _runs(steps: Sequence[Step], output: str) -> Iterator[tuple[int, Segment]]:
    last: dict[str, int] = {}
    for place, step in enumerate(steps):
        last.update(dict.fromkeys(step.reads(), place))
    last[output] = len(steps)
    begin = 0
    while begin < len(steps):
        end = begin
        while end < len(steps) and _pointwise(steps[end]):
            end += 1
        if end - begin > 1:
            yield begin, _segment(steps[begin:end], end, last)
        begin = max(end, begin + 1)


def _pointwise(step: Step) -> bool:
    """Whether a step may be part of a segment: no size, no list, no weight that would be baked in."""
    plain = all(not isinstance(arg, tuple) for arg in (*step.args, *step.kwargs.values()))
    constants = all(isinstance(it, Value | DType | int | float | str | None) for it in step.operands())
    return step.leftover and base_of(step.kernel) in POINTWISE and plain and constants


def _segment(steps: Sequence[Step], end: int, last: dict[str, int]) -> Segment:
    made = {value.name: value for step in steps for value in step.results}
    reads = dict.fromkeys(name for step in steps for name in step.reads() if name not in made)
    results = tuple(value for name, value in made.items() if last.get(name, -1) >= end)
    return Segment(tuple(steps), tuple(reads), results)


def graph_of(segment: Segment, device: torch.device) -> fx.GraphModule:
    """A segment as a graph: ``reads`` in, a tuple of ``results`` out."""
    graph = fx.Graph()
    nodes = {name: graph.placeholder(f"x{place}") for place, name in enumerate(segment.reads)}

    def of(arg: Argument) -> Any:
        assert not isinstance(arg, Expr), f"{arg} in a segment"
        if isinstance(arg, Value):
            return nodes[arg.name]
        return DTYPES[arg.name] if isinstance(arg, DType) else arg

    for step in segment.steps:
        kwargs = {name: of(arg) for name, arg in step.kwargs.items()}
        function = function_of(step, device)
        nodes[step.results[0].name] = graph.call_function(function, tuple(map(of, step.args)), kwargs)
    graph.output(tuple(nodes[value.name] for value in segment.results))
    return fx.GraphModule(torch.nn.Module(), graph)


class Compiler:
    """Compiles each structure once.

    Args:
        backend: of ``torch.compile``.
    """

    def __init__(self, device: torch.device, backend: str = "inductor") -> None:
        self._device, self._backend = device, backend
        self._made: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def function(self, segment: Segment) -> Callable[..., Any]:
        """``reads`` in, ``results`` out; compiled when it first runs."""
        if segment.key not in self._made:
            graph = graph_of(segment, self._device)
            self._made[segment.key] = torch.compile(
                graph, backend=self._backend, dynamic=True, fullgraph=True
            )
        return self._made[segment.key]
