"""Sizes that a step decides: an integer times one of the step's counts.

A plan is made once and runs for every number of tokens, so its sizes, strides and offsets are products
``factor × unit`` that the native side evaluates. What is no such product (``T + 1``, ``T·B``) has no
place in a plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from optpipe.program.dims import Dim, parse_dim


class Unit(IntEnum):
    """What a size is counted in; the numbers are those of ``optpipe_unit`` in optpipe_cpu.h."""

    ONE = 0
    T = 1
    R = 2
    B = 3
    M = 4
    P = 5


@dataclass(frozen=True, slots=True)
class Extent:
    """``factor`` times ``unit``.

    >>> str(times(Extent(3, Unit.T), Extent(64)))
    '192·T'
    """

    factor: int
    unit: Unit = Unit.ONE

    def __str__(self) -> str:
        if self.unit is Unit.ONE or self.factor == 0:
            return str(self.factor)
        return self.unit.name if self.factor == 1 else f"{self.factor}·{self.unit.name}"

    @property
    def fixed(self) -> int | None:
        """The size, when no step changes it."""
        return self.factor if self.unit is Unit.ONE or self.factor == 0 else None


ZERO = Extent(0)
ONE = Extent(1)


def extent_of(dim: Dim) -> Extent | None:
    """A Program's size as an extent, or None when it is none.

    >>> extent_of("2*T"), extent_of("T + 1")
    (Extent(factor=2, unit=<Unit.T: 1>), None)
    """
    if isinstance(dim, int):
        return Extent(dim)
    terms = parse_dim(dim).terms
    if len(terms) != 1 or len(terms[0][0]) != 1:
        return None
    atom, factor = terms[0][0][0], terms[0][1]
    if not isinstance(atom, str) or atom not in Unit.__members__:
        return None
    return Extent(factor, Unit[atom])


def times(left: Extent, right: Extent) -> Extent | None:
    """The product, or None when two counts would be multiplied."""
    if left.unit is Unit.ONE or left.factor == 0:
        return Extent(left.factor * right.factor, right.unit)
    if right.unit is Unit.ONE or right.factor == 0:
        return Extent(left.factor * right.factor, left.unit)
    return None


def over(left: Extent, right: Extent) -> Extent | None:
    """The exact quotient, or None when it is no extent.

    >>> str(over(Extent(6, Unit.T), Extent(2))), str(over(Extent(6, Unit.T), Extent(1, Unit.T)))
    ('3·T', '6')
    """
    if right.factor == 0 or left.factor % right.factor:
        return None
    if right.unit is Unit.ONE:
        return Extent(left.factor // right.factor, left.unit)
    return Extent(left.factor // right.factor) if left.unit is right.unit else None


def product(extents: tuple[Extent, ...]) -> Extent | None:
    """The product of all of them, 1 when there is none."""
    total: Extent | None = ONE
    for extent in extents:
        total = None if total is None else times(total, extent)
    return total
