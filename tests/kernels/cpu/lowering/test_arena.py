from hypothesis import given
from hypothesis import strategies as st

from optpipe_kernels.cpu.lowering.arena import ALIGNMENT, place_buffers
from optpipe_kernels.cpu.lowering.extent import Extent, Unit
from optpipe_kernels.cpu.lowering.instruction import Instruction, Lowered
from optpipe_kernels.cpu.lowering.view import new_buffer


@st.composite
def programs(draw):
    """Instructions over buffers of all units, each read some time after it is written."""
    count = draw(st.integers(1, 12))
    views = [
        new_buffer("f32", (Extent(draw(st.integers(1, 100)), draw(st.sampled_from(list(Unit)[:4]))),))
        for _ in range(count)
    ]
    steps = []
    for at, view in enumerate(views):
        reads = draw(st.lists(st.sampled_from(views[:at]), max_size=3)) if at else []
        steps.append(Instruction("op", [*reads, None], [view]))
    return Lowered(steps, draw(st.sampled_from(views)))


def lifetimes(lowered):
    """Buffer → (first step that touches it, last): written down apart from the planner."""
    spans = {}
    for at, step in enumerate(lowered.steps):
        for view in (*step.reads, *step.writes):
            if view is not None:
                first, _ = spans.get(view.place, (at, at))
                spans[view.place] = (first, at)
    spans[lowered.output.place] = (spans[lowered.output.place][0], len(lowered.steps))
    return spans


@given(programs())
def test_two_buffers_that_live_at_once_never_share_a_byte(lowered):
    arena, spans = place_buffers(lowered), lifetimes(lowered)
    assert set(arena.offset) == set(spans)
    placed = [(arena.offset[it], arena.offset[it] + it.bytes, it.unit, spans[it]) for it in spans]
    for k, (begin, end, unit, (born, dies)) in enumerate(placed):
        assert begin % ALIGNMENT == 0
        assert end <= arena.bytes[unit]
        for other_begin, other_end, other_unit, (other_born, other_dies) in placed[:k]:
            if unit is other_unit and born <= other_dies and other_born <= dies:
                assert end <= other_begin or other_end <= begin


def test_a_chain_needs_two_buffers_at_a_time():
    views = [new_buffer("f32", (Extent(64, Unit.T),)) for _ in range(6)]
    steps = [Instruction("op", views[k - 1 : k] if k else [], [views[k]]) for k in range(6)]
    assert place_buffers(Lowered(steps, views[-1])).bytes[Unit.T] == 2 * 256
