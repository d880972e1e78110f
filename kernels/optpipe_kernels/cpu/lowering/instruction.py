"""What a Program becomes: instructions of the native plan, and segments that torch runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from optpipe.program.program import Node

from .recipe import Recipe
from .view import External, View


@dataclass(eq=False)
class Instruction:
    """One kernel call: operands are ``reads`` and then ``writes``; None is an operand left out."""

    kernel: str
    reads: list[View | None]
    writes: list[View | None]
    ints: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()
    path: str = ""

    @property
    def operands(self) -> list[View | None]:
        """In the kernel's order."""
        return [*self.reads, *self.writes]

    def __str__(self) -> str:
        return f"{self.kernel} {self.path}"


@dataclass(eq=False)
class Segment:
    """A node that no kernel does; torch runs it between two parts of the plan."""

    node: Node
    reads: list[View | None]
    writes: list[View | None]
    reason: str

    @property
    def path(self) -> str:
        """The module it came from."""
        return self.node.path


Step = Instruction | Segment


@dataclass
class Lowered:
    """A Program, lowered.

    Attributes:
        steps: in order.
        output: the logits [R, V].
        weights: what each weight external is made of.
        inputs: the externals of the step and of the cache, in the Program's order.
    """

    steps: list[Step]
    output: View
    weights: dict[External, Recipe] = field(default_factory=dict)
    inputs: list[View] = field(default_factory=list)

    @property
    def segments(self) -> list[Segment]:
        """What torch has to run."""
        return [step for step in self.steps if isinstance(step, Segment)]

    def uses(self) -> Iterator[tuple[Step, View]]:
        """Every (step, view it reads)."""
        for step in self.steps:
            for view in step.reads:
                if view is not None:
                    yield step, view
