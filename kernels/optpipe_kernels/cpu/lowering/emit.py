"""A lowering as the arrays of the C ABI: what ``optpipe_cpu_plan_new`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .. import abi
from .arena import Arena
from .builder import DTYPES
from .extent import Extent, Unit
from .instruction import Instruction, Lowered, Segment
from .view import Buffer, External, View


@dataclass
class Emitted:
    """Arrays, and how to read them.

    Attributes:
        kernels: the kernel's name of each instruction; numbers are the library's affair.
        instructions: as the ABI has them, kernel numbers still 0.
        operands: of all instructions, then of the segments, then the output.
        ints, floats: attributes of all instructions.
        externals: what the executor binds, by number.
        arena_bytes: of each unit that has an arena.
        parts: (begin, end) ranges of instructions, and segments between them, in order.
        paths: the module each instruction came from.
        output: the operand that is the result.
        places: the operands of each segment, reads and then writes.
    """

    kernels: list[str] = field(default_factory=list)
    instructions: list[abi.Instruction] = field(default_factory=list)
    operands: list[abi.Operand] = field(default_factory=list)
    ints: list[int] = field(default_factory=list)
    floats: list[float] = field(default_factory=list)
    externals: list[External] = field(default_factory=list)
    arena_bytes: tuple[int, ...] = ()
    parts: list[tuple[int, int] | Segment] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    output: int = 0
    places: dict[int, list[int]] = field(default_factory=dict)


def emit(lowered: Lowered, arena: Arena) -> Emitted:
    """Write every instruction down."""
    out = Emitted(arena_bytes=tuple(arena.bytes[Unit(unit)] for unit in range(abi.ARENAS)))
    numbers: dict[External, int] = {}
    for step in lowered.steps:
        if isinstance(step, Segment):
            out.parts.append(step)
            continue
        _extend_part(out)
        _emit_instruction(out, step, arena, numbers)
    for step in lowered.segments:
        out.places[id(step)] = _emit_operands(out, [*step.reads, *step.writes], arena, numbers)
    out.output = _emit_operands(out, [lowered.output], arena, numbers)[0]
    out.externals = list(numbers)
    return out


def _extend_part(out: Emitted) -> None:
    at = len(out.instructions)
    last = out.parts[-1] if out.parts else None
    if isinstance(last, tuple):
        out.parts[-1] = (last[0], at + 1)
    else:
        out.parts.append((at, at + 1))


def _emit_instruction(out: Emitted, step: Instruction, arena: Arena, numbers: dict[External, int]) -> None:
    places = _emit_operands(out, step.operands, arena, numbers)
    out.instructions.append(
        abi.Instruction(
            operands=len(places),
            first_operand=len(out.operands) - len(places),
            ints=len(step.ints),
            first_int=len(out.ints),
            floats=len(step.floats),
            first_float=len(out.floats),
        )
    )
    out.ints.extend(step.ints)
    out.floats.extend(step.floats)
    out.kernels.append(step.kernel)
    out.paths.append(step.path)


def _emit_operands(
    out: Emitted, views: Sequence[View | None], arena: Arena, numbers: dict[External, int]
) -> list[int]:
    first = len(out.operands)
    out.operands.extend(_operand(view, arena, numbers) for view in views)
    return list(range(first, len(out.operands)))


def _operand(view: View | None, arena: Arena, numbers: dict[External, int]) -> abi.Operand:
    if view is None:
        return abi.Operand(place=abi.ABSENT, rank=-1)
    assert view.rank <= abi.MAX_RANK, f"{view.rank = } of {view}"
    common = {
        "dtype": DTYPES.index(view.dtype),
        "start": _extent(view.start),
        "rank": view.rank,
        "size": tuple(_extent(it) for it in view.size),
        "stride": tuple(_extent(it) for it in view.stride),
    }
    if isinstance(view.place, Buffer):
        offset = arena.offset[view.place]
        return abi.Operand(place=abi.ARENA, unit=int(view.place.unit), offset=offset, **common)
    number = numbers.setdefault(view.place, len(numbers))
    return abi.Operand(place=abi.EXTERNAL, index=number, **common)


def _extent(extent: Extent) -> abi.Extent:
    return abi.Extent(extent.factor, int(extent.unit))
