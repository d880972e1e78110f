"""Steps → a flat list of calls over registers: what runs for every step of the model, and nothing else.

A register holds a value, an input, a cache or a symbolic size. A call knows the registers that it reads and
writes, and those whose last reader it is, which it empties: the allocator has the memory back at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from optpipe.program.dims import evaluate
from optpipe.program.ops import DTYPES
from optpipe.program.program import DType, Expr, Value

from . import leftovers
from .attention import Layer, layer_of
from .kernel_finder import KERNELS
from .operations import Operations
from .recipes import Dense, EightBits, Experts, Joined, Plain, Quantized, Recipe, Rows
from .steps import Argument, Lowered, Step

RECIPES = (Plain, Dense, Experts, Joined, Quantized, EightBits, Rows)
FACTS = "facts"  # the register of them
_VIEWS = ("aten.reshape", "aten.view")


Facts = Mapping[Layer, Any] | None
"""The lists of a step's attention for every layer; None where attention runs on its body."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    Attributes:
        run: takes what the registers ``reads`` hold.
        writes: where its results go; one: the result itself.
        frees: registers that nobody reads after it.
        kernel, path: what it is, for people.
    """

    run: Callable[..., Any]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    frees: tuple[int, ...]
    kernel: str
    path: str


class Calls:
    """Runs the steps of a model.

    Args:
        lowered: the steps.
        weights: a tensor (of a quantized matrix: tensors) for each recipe.
        operations: finds what runs a step.
        device: where new tensors are made.
        compiler: makes segments of leftovers one call; None leaves them eager.
    """

    def __init__(
        self,
        lowered: Lowered,
        weights: Mapping[Recipe, Any],
        operations: Operations,
        device: torch.device,
        compiler: leftovers.Compiler | None = None,
    ) -> None:
        self._weights, self._operations, self._device = weights, operations, device
        self._registers: dict[str, int] = {}
        self._sizes: dict[str, int] = {}  # text of a symbolic size → its register
        self._output = lowered.output.name
        found = leftovers.segments(lowered.steps, self._output) if compiler is not None else {}
        self._head, self._plain_head = _head_of(lowered), lowered.steps[-1].kernel != "finish_logits"
        self.calls = self._freed(list(self._bound(lowered.steps, found, compiler)))
        self._greedy = self._greedy_call()
        self._weights = {}  # calls have theirs; what was repacked is let go

    def run(
        self, inputs: Mapping[str, Any], sizes: Mapping[str, int], facts: Facts, *, greedy: bool = False
    ) -> torch.Tensor:
        """One step of the model → its logits [R, V].

        Args:
            inputs: a tensor for each input and a ``Stored`` for each cache, by name.
            sizes: T, R, B, M, P.
            facts: of the step's attention.
            greedy: give the most likely token of each row instead, [R] int64, where one kernel does that and
                the head; else logits all the same.
        """
        registers: list[Any] = [None] * len(self._registers)
        for name, value in inputs.items():
            if name in self._registers:
                registers[self._registers[name]] = value
        for text, at in self._sizes.items():
            registers[at] = evaluate(text, sizes)
        if FACTS in self._registers:
            registers[self._registers[FACTS]] = facts
        last = self.calls[-1] if self._greedy is None or not greedy else self._greedy
        for call in (*self.calls[:-1], last):
            made = call.run(*[registers[at] for at in call.reads])
            if len(call.writes) == 1:
                registers[call.writes[0]] = made
            elif call.writes:
                for at, value in zip(call.writes, made, strict=True):
                    registers[at] = value
            for at in call.frees:
                registers[at] = None
        found: torch.Tensor = registers[self._registers[self._output]]
        return found

    def _bound(
        self,
        steps: Sequence[Step],
        segments: Mapping[int, leftovers.Segment],
        compiler: leftovers.Compiler | None,
    ) -> Iterator[Call]:
        place = 0
        while place < len(steps):
            segment = segments.get(place)
            if segment is None or compiler is None:
                yield self._call(steps[place])
                place += 1
                continue
            reads = tuple(self._register(name) for name in segment.reads)
            writes = tuple(self._register(value.name) for value in segment.results)
            run = compiler.function(segment)
            if len(writes) == 1:
                run = functools.partial(_only, run)
            yield Call(run, reads, writes, (), f"{len(segment.steps)} compiled", steps[place].path)
            place += len(segment.steps)

    def _experts(self, step: Step) -> tuple[Step, Callable[..., Any]] | None:
        """A step of quantized experts without its weights, which are packed into the function beside it."""
        if step.kernel != "quant_moe":
            return None
        constants = [self._constant(arg) for arg in step.args[3:]]
        run = self._operations.packed_experts(constants, step.kwargs)
        return None if run is None else (replace(step, args=step.args[:3], kwargs={}), run)

    def _call(self, step: Step) -> Call:
        step, function = self._experts(step) or (step, self._function(step))
        if step.windows:
            function = functools.partial(_windows, function, step.windows)
        reads: list[int] = []
        args = [self._argument(arg, reads) for arg in step.args]
        if step.kernel == "paged_attention":
            args.insert(0, next)
            reads.insert(0, self._register(FACTS))
        kwargs = {name: self._argument(arg, reads) for name, arg in step.kwargs.items()}
        writes = tuple(self._register(value.name) for value in step.results)
        run = _filled(function, args, kwargs)
        if writes and len(writes) == 1 and _gives_list(step):
            run = functools.partial(_only, run)
        return Call(run, tuple(reads), writes, (), step.kernel, step.path)

    def _greedy_call(self) -> Call | None:
        """The last call, giving tokens instead of logits; None where no kernel does that."""
        if self._head is None or not self._plain_head:
            return None
        run = self._operations.greedy_head(self._constant(self._head.args[1]))
        if run is None:
            return None
        args = [self._argument(arg, []) for arg in self._head.args]
        return replace(self.calls[-1], run=_filled(run, args, {}), kernel="greedy_head")

    def _function(self, step: Step) -> Callable[..., Any]:
        operations = self._operations
        if step is self._head and isinstance(step.args[1], Dense | Quantized):
            return operations.head(self._constant(step.args[1]), step.args[1])
        if step.kernel in _VIEWS:
            return lambda x, shape: x.reshape(shape)
        if step.leftover:
            return leftovers.function_of(step, self._device)
        if step.kernel in KERNELS:
            return operations.dialect(step.kernel)
        if isinstance(step.args[1] if len(step.args) > 1 else None, Quantized):
            weight = step.args[1]
            assert isinstance(weight, Quantized), f"{weight = } of a quantized layer"
            made: Callable[..., Any] = getattr(operations, step.kernel)(weight.bits, weight.group)
            return made
        if step.kernel == "embedding":
            return operations.embedding
        if step.kernel == "paged_attention":
            return operations.paged_attention(layer_of(step))
        found: Callable[..., Any] = getattr(operations, step.kernel)()
        return found

    def _argument(self, arg: Argument, reads: list[int]) -> Callable[[Iterator[Any]], Any]:
        """What takes an argument from those that a call is given, in the order of ``reads``."""
        if isinstance(arg, Value):
            reads.append(self._register(arg.name))
            return next
        if isinstance(arg, Expr):
            reads.append(self._size(arg.text))
            return next
        if isinstance(arg, tuple):
            parts = [self._argument(item, reads) for item in arg]
            return lambda given: [part(given) for part in parts]
        constant = self._constant(arg)
        return lambda given: constant

    def _constant(self, arg: Argument) -> Any:
        if isinstance(arg, RECIPES):
            return self._weights[arg]
        return DTYPES[arg.name] if isinstance(arg, DType) else arg

    def _register(self, name: str) -> int:
        return self._registers.setdefault(name, len(self._registers))

    def _size(self, text: str) -> int:
        at = self._register(f"size {text}")
        self._sizes[text] = at
        return at

    def _freed(self, calls: list[Call]) -> tuple[Call, ...]:
        """The same calls, each emptying the registers that it is the last to read."""
        last = {at: place for place, call in enumerate(calls) for at in (*call.reads, *call.writes)}
        last[self._registers[self._output]] = len(calls)
        frees: dict[int, list[int]] = {}
        for at, place in last.items():
            frees.setdefault(place, []).append(at)
        return tuple(
            Call(it.run, it.reads, it.writes, tuple(frees.get(place, ())), it.kernel, it.path)
            for place, it in enumerate(calls)
        )


def _head_of(lowered: Lowered) -> Step | None:
    """The LM head: its result is the logits, or becomes them in the last step. None where none is."""
    last = lowered.steps[-1]
    if last.kernel == "finish_logits":
        return lowered.steps[-2] if last.results == (lowered.output,) else None
    return last if last.kernel in ("linear", "quant_linear") and last.results == (lowered.output,) else None


def _gives_list(step: Step) -> bool:
    """Whether a leftover gives a list of tensors although it defines one value."""
    lists = ("chunk", "split", "split_with_sizes", "unbind")
    return step.leftover and leftovers.base_of(step.kernel) in lists


def _only(function: Callable[..., Any], *args: Any) -> Any:
    (made,) = function(*args)
    return made


def _windows(function: Callable[..., Any], windows: Sequence[tuple[int, int]], *args: Any) -> list[Any]:
    """The columns of a joint product that belong to each of its layers."""
    out = function(*args)
    return [out[..., begin:end] for begin, end in windows]


def _filled(
    function: Callable[..., Any],
    args: Sequence[Callable[[Iterator[Any]], Any]],
    kwargs: Mapping[str, Callable[[Iterator[Any]], Any]],
) -> Callable[..., Any]:
    """``function`` with its constants in place: takes what the registers hold."""
    if not kwargs and all(arg is next for arg in args):
        return function

    def run(*values: Any) -> Any:
        given = iter(values)
        positional = [arg(given) for arg in args]
        return function(*positional, **{name: arg(given) for name, arg in kwargs.items()})

    return run
