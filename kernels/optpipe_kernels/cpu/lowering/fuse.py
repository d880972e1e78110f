"""Neighbouring instructions become one: fewer passes over the activations and fewer barriers.

norm, quantize                       → norm that writes rounded activations
gated product, quantize              → gated product that does
product, add                         → product that starts from the other summand
product, add + norm                  → product with the residual; norm
rope(q), rope(k), kv_write           → one turn and write
product that gives the logits, argmax → one product that keeps only the best
"""

from __future__ import annotations

from collections.abc import Callable

from .extent import Extent
from .flow import Flow
from .instruction import Instruction, Lowered, Step
from .view import View

NORMS = {"rms_norm": (0, 1), "add_rms_norm": (0, 2), "layer_norm": (0, 1)}
"""Kernel → which of its results is the norm, and which the rounded norm."""

PRODUCTS = ("linear", "quant_linear")
GATED = ("linear_gated", "quant_linear_gated")
_RESIDUAL = 3  # operand of a product

Gone = set[int]
Rule = Callable[[Flow, Instruction, Gone], list[Instruction] | None]
"""Gives what stands in an instruction's place, or None to leave it; names by ``id`` others that are gone."""


def fuse(lowered: Lowered) -> Lowered:
    """Apply every fusion where it holds; changes ``lowered`` and returns it."""
    for rule in (residual_norm, residual_add, turn_and_write, round_results):
        _everywhere(lowered, rule)
    return lowered


def _everywhere(lowered: Lowered, rule: Rule) -> None:
    """Offer each instruction to the rule; what it returns takes the instruction's place.

    One flow serves the whole walk: a fusion moves a read from one instruction to another and removes results
    that nothing else reads, so what the flow says of any other buffer stays true.
    """
    flow = Flow(lowered)
    gone: set[int] = set()
    steps: list[Step] = []
    for step in lowered.steps:
        made = rule(flow, step, gone) if isinstance(step, Instruction) and id(step) not in gone else None
        steps.extend([step] if made is None else made)
    lowered.steps = [step for step in steps if id(step) not in gone]


def residual_norm(flow: Flow, step: Instruction, gone: Gone) -> list[Instruction] | None:
    """add_rms_norm(product, x) is a norm of the product that starts from x."""
    if step.kernel != "add_rms_norm":
        return None
    out, total, rounded = step.writes
    assert total is not None, f"{step} writes its sum"
    for product, other in (step.reads[:2], step.reads[1::-1]):
        maker = flow.writer(product)
        if maker is not None and _takes_residual(flow, maker, product, other):
            maker.reads[_RESIDUAL] = _rows(other, maker)
            maker.writes[0] = _rows(total, maker)
            return [
                Instruction(
                    "rms_norm", [total, step.reads[2]], [out, rounded], step.ints, step.floats, step.path
                )
            ]
    return None


def residual_add(flow: Flow, step: Instruction, gone: Gone) -> list[Instruction] | None:
    """add(product, x) is the product that starts from x."""
    if step.kernel != "add" or None in step.reads:
        return None
    for product, other in (step.reads, step.reads[::-1]):
        maker = flow.writer(product)
        if maker is not None and _takes_residual(flow, maker, product, other):
            maker.reads[_RESIDUAL] = _rows(other, maker)
            maker.writes[0] = _rows(step.writes[0], maker)
            return []
    return None


def _takes_residual(flow: Flow, maker: Instruction, product: View | None, other: View | None) -> bool:
    return (
        maker.kernel in PRODUCTS
        and maker.reads[_RESIDUAL] is None
        and product is not None
        and other is not None
        and flow.private(product)
        and product.contiguous
        and product.size == other.size
        and other.dtype == "f32"
        and _rows(other, maker) is not None
        and flow.known_before(other, maker)
    )


def _rows(view: View | None, maker: Instruction) -> View | None:
    """``view`` in the sizes of the product's result; None when its layout forbids."""
    result = maker.writes[0]
    assert view is not None and result is not None, f"{maker} has a result"
    shaped = view.reshape(result.size)
    return shaped if shaped is not None and shaped.stride[-1] == Extent(1) else None


def turn_and_write(flow: Flow, step: Instruction, gone: Gone) -> list[Instruction] | None:
    """``rope_kv_write(q?, k, v, cos, sin, slots, q_out?, k_cache, v_cache) | interleaved``."""
    if step.kernel != "kv_write":
        return None
    key, value, slots = step.reads
    turn = flow.writer(key)
    if key is None or turn is None or turn.kernel != "rope" or turn.writes[0] != key or not flow.private(key):
        return None
    raw, cos, sin = turn.reads
    gone.add(id(turn))
    query = _turned_query(flow, step, turn)
    if query is not None:
        gone.add(id(query))
    reads = [query.reads[0] if query else None, raw, value, cos, sin, slots]
    writes = [query.writes[0] if query else None, *step.writes]
    return [Instruction("rope_kv_write", reads, writes, turn.ints, (), step.path)]


def _turned_query(flow: Flow, write: Instruction, turn: Instruction) -> Instruction | None:
    """The rope of the query that goes with a key, when it can run at the write."""
    attention = flow.attention.get(write.writes[0])
    query = None if attention is None else flow.writer(attention.reads[0])
    if query is None or query.kernel != "rope" or query.reads[1:] != turn.reads[1:]:
        return None
    return query if query.ints == turn.ints and _movable(flow, query, write) else None


def _movable(flow: Flow, query: Instruction, write: Instruction) -> bool:
    """Whether everything the query's rope reads is known at the write, and nobody needs it sooner."""
    known = all(flow.known_before(view, write) for view in query.reads if view is not None)
    out = query.writes[0]
    assert out is not None, f"{query} has a result"
    return known and all(flow.place[id(reader)] > flow.place[id(write)] for reader in flow.readers(out))


def round_results(flow: Flow, step: Instruction, gone: Gone) -> list[Instruction] | None:
    """A norm or a gated product rounds its own result where ``quantize`` follows."""
    if step.kernel != "quantize":
        return None
    x, rounded = step.reads[0], step.writes[0]
    maker = flow.writer(x)
    if x is None or maker is None:
        return None
    plain, place = NORMS.get(maker.kernel) or ((0, 1) if maker.kernel in GATED else (None, None))
    if plain is None or place is None or maker.writes[place] is not None:
        return None
    out = maker.writes[plain]
    if out is None or out.place is not x.place or out.size[-1] != x.size[-1] or not x.contiguous:
        return None
    if maker.kernel in GATED and (out.size[-1].fixed or 1) % 32:
        return None
    maker.writes[place] = rounded
    if flow.private(x):
        maker.writes[plain] = None
    return []


def greedy(lowered: Lowered, ids: View, best: View) -> Lowered:
    """The same lowering, giving each row's likeliest token instead of its logits.

    Args:
        ids: [R] i64, the likeliest token of each row; the lowest id of equals.
        best: [R] f32, its logit.
    """
    logits = lowered.output
    flow = Flow(lowered)
    maker = flow.writer(logits)
    steps = list(lowered.steps)
    if (
        maker is not None
        and maker.kernel in PRODUCTS
        and maker.reads[_RESIDUAL] is None
        and not flow.readers(logits)
    ):
        at = steps.index(maker)
        reads = maker.reads[:_RESIDUAL]
        steps[at] = Instruction(f"{maker.kernel}_argmax", reads, [ids, best], maker.ints, (), maker.path)
    else:
        steps.append(Instruction("argmax", [logits], [ids]))
    return Lowered(steps, ids, lowered.weights, lowered.inputs)
