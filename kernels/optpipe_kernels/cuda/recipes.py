"""How a weight of the steps is made of the artifact's, in names alone; equal recipes are one weight."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plain:
    """A tensor as it is. Floats that are stored in less than 32 bits come in the compute dtype.

    Attributes:
        wide: comes in float32 whatever it is stored in: positions need it.
    """

    name: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Dense:
    """Float matrices [N1, K], [N2, K], … one below the other, in the compute dtype.

    Attributes:
        transposed: each is stored [K, N].
    """

    names: tuple[str, ...]
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Experts:
    """A projection of every expert [E, N, K] in the compute dtype, or its biases [E, N].

    Attributes:
        name: as the artifact has it.
        transposed: it is stored [E, K, N].
        interleaved: rows of gate and up alternate; they are put one half after the other.
    """

    name: str
    transposed: bool
    interleaved: bool


@dataclass(frozen=True, slots=True)
class Joined:
    """Vectors [N1], [N2], … end to end in the compute dtype; a name of None is zeros of that length."""

    parts: tuple[tuple[str | None, int], ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """The names of one quantized matrix: codes, scale, and minimum (None on the symmetric grid)."""

    packed: str
    scale: str
    minimum: str | None = None


@dataclass(frozen=True, slots=True)
class Quantized:
    """Quantized matrices over the same inputs, one below the other, as ``quant_linear`` wants them.

    Attributes:
        parts: as the artifact stores them, words [Ni, K·bits/32] each.
        bits: 4 or 8.
        group: inputs a scale; −1 for one scale a row.
    """

    parts: tuple[Grid, ...]
    bits: int
    group: int


@dataclass(frozen=True, slots=True)
class EightBits:
    """Matrices of 8-bit rows over the same inputs, one below the other, each with its scales [Ni, 1].

    Attributes:
        kind: i8 or f8, of the codes and of the activations that meet them.
    """

    parts: tuple[Grid, ...]
    kind: str


@dataclass(frozen=True, slots=True)
class Rows:
    """A quantized matrix as it is stored: an embedding, of which rows are read."""

    grid: Grid


Recipe = Plain | Dense | Experts | Joined | Quantized | EightBits | Rows


def names_of(recipe: Recipe) -> tuple[str, ...]:
    """The weights of the artifact that a recipe reads."""
    match recipe:
        case Plain(name) | Experts(name):
            return (name,)
        case Dense(names):
            return names
        case Joined(parts):
            return tuple(name for name, _ in parts if name is not None)
        case Quantized(parts) | EightBits(parts):
            return tuple(name for part in parts for name in _grid_names(part))
        case Rows(grid):
            return _grid_names(grid)


def _grid_names(grid: Grid) -> tuple[str, ...]:
    return tuple(name for name in (grid.packed, grid.scale, grid.minimum) if name is not None)
