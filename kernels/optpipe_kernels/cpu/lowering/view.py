"""Where tensors lie: buffers of the arena, externals bound at run time, and strided views of both."""

from __future__ import annotations

from dataclasses import dataclass, replace

from optpipe.program.types import DTYPE_BYTES

from .extent import ONE, ZERO, Extent, Unit, over, product, times


@dataclass(eq=False)
class Buffer:
    """A tensor in the arena of ``unit``: ``bytes`` × unit bytes. Compared by identity."""

    unit: Unit
    bytes: int


@dataclass(frozen=True)
class External:
    """A tensor that the executor binds before a step.

    Attributes:
        kind: "input", "cache", "weight" or "output".
        name: of the input, the cache or the output; of a weight, what ``Weight.key`` says.
    """

    kind: str
    name: str


Place = Buffer | External


@dataclass(frozen=True)
class View:
    """A strided window of a place; sizes and strides count elements."""

    place: Place
    dtype: str
    size: tuple[Extent, ...]
    stride: tuple[Extent, ...]
    start: Extent = ZERO

    @property
    def rank(self) -> int:
        """How many dimensions it has."""
        return len(self.size)

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie one after the other in row-major order."""
        return self.stride == row_major(self.size)

    def select(self, dim: int, index: int) -> View | None:
        """Drop a dimension at one index."""
        start = _moved(self.start, self.stride[dim], index)
        keep = [d for d in range(self.rank) if d != dim]
        return None if start is None else replace(self._pick(keep), start=start)

    def slice(self, dim: int, begin: int, size: Extent) -> View | None:
        """``size`` elements of a dimension from ``begin`` on."""
        start = _moved(self.start, self.stride[dim], begin)
        if start is None:
            return None
        return replace(self, start=start, size=(*self.size[:dim], size, *self.size[dim + 1 :]))

    def permute(self, order: tuple[int, ...]) -> View:
        """Dimensions in another order."""
        return self._pick(list(order))

    def expand(self, size: tuple[Extent, ...]) -> View | None:
        """Repeat dimensions of size 1 without copying; new ones stand in front. None when they do not fit."""
        new = len(size) - self.rank
        if new < 0:
            return None
        stride = [ZERO] * new
        for own, step, wanted in zip(self.size, self.stride, size[new:], strict=True):
            if own == wanted:
                stride.append(step)
            elif own == ONE:
                stride.append(ZERO)
            else:
                return None
        return replace(self, size=size, stride=tuple(stride))

    def reshape(self, size: tuple[Extent, ...]) -> View | None:
        """The same elements in other dimensions, or None when they must be copied for that."""
        stride = _restride(self.size, self.stride, size)
        return None if stride is None else replace(self, size=size, stride=stride)

    def _pick(self, dims: list[int]) -> View:
        return replace(
            self, size=tuple(self.size[d] for d in dims), stride=tuple(self.stride[d] for d in dims)
        )


def row_major(size: tuple[Extent, ...]) -> tuple[Extent, ...] | None:
    """Strides of a contiguous tensor, or None when one would multiply two counts."""
    stride = []
    step: Extent | None = ONE
    for extent in reversed(size):
        if step is None:
            return None
        stride.append(step)
        step = times(step, extent)
    return tuple(reversed(stride))


def new_buffer(dtype: str, size: tuple[Extent, ...]) -> View | None:
    """A contiguous tensor with a buffer of its own, or None when its size is no multiple of one count."""
    elements, stride = product(size), row_major(size)
    if elements is None or stride is None or elements.unit > Unit.B:
        return None
    return View(Buffer(elements.unit, elements.factor * DTYPE_BYTES[dtype]), dtype, size, stride)


def _moved(start: Extent, stride: Extent, index: int) -> Extent | None:
    step = Extent(stride.factor * index, stride.unit)
    if step.factor == 0:
        return start
    if start.factor == 0:
        return step
    return Extent(start.factor + step.factor, start.unit) if start.unit is step.unit else None


def _restride(
    size: tuple[Extent, ...], stride: tuple[Extent, ...], wanted: tuple[Extent, ...]
) -> tuple[Extent, ...] | None:
    """Strides of ``wanted`` over the same memory: new dimensions are split off old ones, the last first."""
    runs = _runs(size, stride)
    result: list[Extent] = []
    left, step = runs.pop() if runs else (ONE, ONE)
    for extent in reversed(wanted):
        if extent == ONE:
            result.append(step)
            continue
        if left == ONE and runs:
            left, step = runs.pop()
        rest, following = over(left, extent), times(step, extent)
        if rest is None or following is None:
            return None
        result.append(step)
        left, step = rest, following
    return tuple(reversed(result)) if left == ONE and not runs else None


def _runs(size: tuple[Extent, ...], stride: tuple[Extent, ...]) -> list[tuple[Extent, Extent]]:
    """(length, step) of maximal runs of dimensions that lie one after the other; ones are left out."""
    runs: list[tuple[Extent, Extent]] = []
    for extent, step in zip(size, stride, strict=True):
        if extent == ONE:
            continue
        if runs:
            length, outer = runs[-1]
            joined = times(length, extent)
            if joined is not None and outer == times(step, extent):
                runs[-1] = (joined, step)
                continue
        runs.append((extent, step))
    return runs
