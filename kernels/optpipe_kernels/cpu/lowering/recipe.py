"""How a weight of the plan is made from weights of the artifact: read, joined, packed for the kernels.

A recipe says so in names alone, so a plan is made without reading a tensor; equal recipes are one weight.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plain:
    """A tensor as it is, contiguous, in ``dtype``."""

    name: str
    dtype: str


@dataclass(frozen=True)
class Joined:
    """Vectors [N1], [N2], … end to end in float32; a name of None stands for zeros of that length."""

    parts: tuple[tuple[str | None, int], ...]
    interleaved: bool = False


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


@dataclass(frozen=True)
class Linear:
    """Matrices over the same inputs, one below the other, packed for the linear kernels.

    Attributes:
        parts: the matrices [N1, K], [N2, K], …
        inputs: K.
        bits: 4, 8, or 16 and 32 for bfloat16 and float32 weights.
        group: inputs a scale; −1 for one scale a row; 0 for float weights.
        interleaved: rows n and n + N/2 stand next to each other: gate and up.
    """

    parts: tuple[Matrix, ...]
    inputs: int
    bits: int
    group: int
    interleaved: bool = False

    @property
    def rows(self) -> int:
        """N of all parts together."""
        return sum(part.rows for part in self.parts)

    @property
    def minimum(self) -> bool:
        """Whether the grid has a float minimum."""
        return len(self.parts[0].names) == 3 and self.parts[0].names[2] is not None


@dataclass(frozen=True)
class Experts:
    """The stacked matrices of E experts [E, N, K], each packed as a linear layer of its own, end to end."""

    matrix: Matrix
    experts: int
    inputs: int
    bits: int
    group: int

    @property
    def minimum(self) -> bool:
        """Whether the grid has a float minimum."""
        return len(self.matrix.names) == 3 and self.matrix.names[2] is not None


Recipe = Plain | Joined | Linear | Experts
