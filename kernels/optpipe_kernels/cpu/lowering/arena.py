"""Places for buffers: two that are never alive at once may lie in the same bytes.

Each count (1, T, R, B) has an arena of its own, in which a buffer of s bytes a unit takes s bytes at
an offset a unit; both are multiplied by the count when a step runs, so one plan serves every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .extent import Unit
from .instruction import Lowered, Step
from .view import Buffer

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


@dataclass(frozen=True)
class Arena:
    """Where each buffer lies.

    Attributes:
        offset: bytes, times the buffer's unit.
        bytes: size of the arena of each unit, times the unit.
    """

    offset: dict[Buffer, int]
    bytes: dict[Unit, int]


@dataclass
class _Span:
    buffer: Buffer
    first: int
    last: int

    @property
    def bytes(self) -> int:
        return -(-self.buffer.bytes // ALIGNMENT) * ALIGNMENT


def place_buffers(lowered: Lowered) -> Arena:
    """Largest first, each at the lowest offset where nothing alive at the same time lies."""
    spans = _spans(lowered)
    offset: dict[Buffer, int] = {}
    size = dict.fromkeys((Unit.ONE, Unit.T, Unit.R, Unit.B), 0)
    placed: list[_Span] = []
    for span in sorted(spans, key=lambda span: (-span.bytes, span.first)):
        near = [it for it in placed if it.buffer.unit is span.buffer.unit]
        taken = sorted(
            (offset[it.buffer], it.bytes) for it in near if it.first <= span.last and span.first <= it.last
        )
        at = 0
        for begin, length in taken:
            if at + span.bytes <= begin:
                break
            at = max(at, begin + length)
        offset[span.buffer] = at
        size[span.buffer.unit] = max(size[span.buffer.unit], at + span.bytes)
        placed.append(span)
    return Arena(offset, size)


def _spans(lowered: Lowered) -> Iterable[_Span]:
    """The first and last step that touch each buffer; the output lives to the end."""
    spans: dict[Buffer, _Span] = {}
    for at, step in enumerate(lowered.steps):
        for buffer in _buffers(step):
            spans.setdefault(buffer, _Span(buffer, at, at)).last = at
    if isinstance(lowered.output.place, Buffer) and lowered.output.place in spans:
        spans[lowered.output.place].last = len(lowered.steps)
    return spans.values()


def _buffers(step: Step) -> Iterable[Buffer]:
    for view in (*step.reads, *step.writes):
        if view is not None and isinstance(view.place, Buffer):
            yield view.place
