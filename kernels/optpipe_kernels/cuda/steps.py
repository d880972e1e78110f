"""What a step of the model is made of: steps over the values of a Program, each for one kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from optpipe.program.program import Arg, Expr, Value
from optpipe.targets.protocol import CacheSpec

from .recipes import Recipe

Operand = Arg | Recipe
"""A value, a weight by its recipe, or a constant."""

Argument = Operand | tuple[Operand, ...]


@dataclass(slots=True)
class Step:
    """One call of one kernel.

    Attributes:
        kernel: a name of ``operations.KERNELS``, or an ATen operation of the Program.
        args: what it reads, in the kernel's order.
        kwargs: what it reads by name, constants most of all.
        results: the values that it defines.
        windows: columns [begin, end) of the kernel's one result that each of ``results`` is; () when the
            kernel gives them itself.
        path: the module that it came from.
    """

    kernel: str
    args: tuple[Argument, ...]
    kwargs: Mapping[str, Argument] = field(default_factory=dict)
    results: tuple[Value, ...] = ()
    windows: tuple[tuple[int, int], ...] = ()
    path: str = ""

    @property
    def leftover(self) -> bool:
        """Whether no kernel of ours does it."""
        return self.kernel.startswith("aten.")

    def operands(self) -> Iterator[Operand]:
        """Every argument that is not a list; lists are looked into."""
        for arg in (*self.args, *self.kwargs.values()):
            yield from _leaves(arg)

    def reads(self) -> Iterator[str]:
        """The names of the values that it reads."""
        return (it.name for it in self.operands() if isinstance(it, Value))

    def sizes(self) -> Iterator[str]:
        """The symbolic sizes among its arguments."""
        return (it.text for it in self.operands() if isinstance(it, Expr))


def _leaves(arg: Argument) -> Iterator[Operand]:
    if isinstance(arg, tuple):
        for item in arg:
            yield from _leaves(item)
    else:
        yield arg


@dataclass(frozen=True)
class Lowered:
    """A paged Program as steps.

    Attributes:
        steps: in the order they run.
        inputs: names of the plain inputs.
        caches: names of the cache inputs.
        output: the logits [R, V].
        wide: names of the values that come from positions alone and stay in float32.
        cache_spec: the cache it needs.
        vocab_size: V.
    """

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    caches: tuple[str, ...]
    output: Value
    wide: frozenset[str]
    cache_spec: CacheSpec
    vocab_size: int
