"""How a weight of the plan is made from weights of the artifact: read, joined, packed for the kernels.

A recipe says so in names alone, so a plan is made without reading a tensor; equal recipes are one weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..pack import Form


@dataclass(frozen=True)
class Plain:
    """A tensor as it is, contiguous, in ``dtype``."""

    name: str
    dtype: str


@dataclass(frozen=True)
class Joined:
    """Vectors [N1], [N2], … end to end in float32; a name of None stands for zeros of that length."""

    parts: tuple[tuple[str | None, int], ...]


@dataclass(frozen=True)
class Matrix:
    """One weight of a linear layer as the artifact stores it.

    Attributes:
        names: the float weight; or codes, scale and minimum (None on the symmetric grid).
        rows: outputs N.
        transposed: a float weight that is stored [K, N].
    """

    names: tuple[str | None, ...]
    rows: int
    transposed: bool = False

    @property
    def minimum(self) -> bool:
        """Whether the grid has a float minimum."""
        return len(self.names) == 3 and self.names[2] is not None


@dataclass(frozen=True)
class Linear:
    """Matrices over the same inputs, one below the other, packed for the linear kernels.

    Attributes:
        parts: the matrices [N1, K], [N2, K], …
        inputs: K.
        bits: 4, 8, or 16 and 32 for bfloat16 and float32 weights.
        group: inputs a scale; −1 for one scale a row; 0 for float weights.
        wide: scales are float32.
        gated: the first half of all rows gates the second.
    """

    parts: tuple[Matrix, ...]
    inputs: int
    bits: int
    group: int
    wide: bool = False
    gated: bool = False

    @property
    def rows(self) -> int:
        """N of all parts together."""
        return sum(part.rows for part in self.parts)

    @property
    def minimum(self) -> bool:
        """Whether the grid has a float minimum."""
        return self.parts[0].minimum

    @property
    def form(self) -> Form:
        """What the packed bytes hold."""
        rows = self.rows // 2 if self.gated else self.rows
        return Form(rows, self.inputs, self.bits, self.group, self.minimum, self.wide, self.gated)


@dataclass(frozen=True)
class Experts:
    """The stacked matrices of E experts [E, N, K], each packed as a linear layer of its own, end to end."""

    matrix: Matrix
    experts: int
    inputs: int
    bits: int
    group: int
    wide: bool = False

    @property
    def minimum(self) -> bool:
        """Whether the grid has a float minimum."""
        return self.matrix.minimum

    @property
    def form(self) -> Form:
        """What the packed bytes of one expert hold."""
        return Form(self.matrix.rows, self.inputs, self.bits, self.group, self.minimum, self.wide)


Recipe = Plain | Joined | Linear | Experts
