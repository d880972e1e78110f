"""Steps behind each other that one kernel does.

A product and its activation; rope and the cache's write; what a model does to a branch before it is added,
and to the logits of its head.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from optpipe.program.program import Value

from .steps import Step

_SCALES = {"aten.mul.Tensor": 1, "aten.div.Tensor": -1}  # operation → the power of its number


def gate_up(steps: list[Step]) -> list[Step]:
    """Put the gated activation into the quantized product that nobody else reads."""
    readers = Counter(name for step in steps for name in step.reads())
    makers = {value.name: step for step in steps for value in step.results}
    taken: dict[int, Step] = {}
    gone: set[int] = set()
    for step in steps:
        if step.kernel != "gated_act" or not isinstance(step.args[0], Value):
            continue
        product = makers.get(step.args[0].name)
        if product is None or product.kernel != "quant_linear" or step.args[:2] != product.results:
            continue
        if all(readers[value.name] == 1 for value in product.results) and _halves(product):
            taken[id(product)] = replace(
                product, kernel="quant_gate_up", kwargs=step.kwargs, results=step.results, windows=()
            )
            gone.add(id(step))
    return [taken.get(id(step), step) for step in steps if id(step) not in gone]


def _halves(product: Step) -> bool:
    (first, middle), (again, end) = product.windows
    return first == 0 and middle == again and end == 2 * middle


def turn_and_write(steps: list[Step]) -> list[Step]:
    """Put rope(k), and the rope(q) that goes with it, into the write of the keys."""
    place = {id(step): at for at, step in enumerate(steps)}
    makers = {value.name: step for step in steps for value in step.results}
    readers: dict[str, list[Step]] = {}
    for step in steps:
        for name in step.reads():
            readers.setdefault(name, []).append(step)
    attention = {step.args[1]: step for step in steps if step.kernel == "paged_attention"}
    gone: set[int] = set()
    made: dict[int, Step] = {}
    for step in steps:
        if step.kernel != "kv_write" or not isinstance(step.args[0], Value):
            continue
        turn = makers.get(step.args[0].name)
        if turn is None or turn.kernel != "rope" or len(readers[step.args[0].name]) != 1:
            continue
        reader = attention.get(step.args[2])
        query = makers.get(reader.args[0].name) if reader and isinstance(reader.args[0], Value) else None
        if query is not None and not _goes_with(query, turn, step, readers, place):
            query = None
        gone.update(id(it) for it in (turn, query) if it is not None)
        made[id(step)] = _rope_kv_write(query, turn, step)
    return [made.get(id(step), step) for step in steps if id(step) not in gone]


def _goes_with(
    query: Step, turn: Step, write: Step, readers: dict[str, list[Step]], place: dict[int, int]
) -> bool:
    """Whether a query's rope is the key's, before the write, and nobody needs it sooner."""
    return (
        query.kernel == "rope"
        and query is not turn
        and query.args[1:] == turn.args[1:]
        and query.kwargs == turn.kwargs
        and place[id(query)] < place[id(write)]
        and all(place[id(it)] > place[id(write)] for it in readers[query.results[0].name])
    )


def _rope_kv_write(query: Step | None, turn: Step, write: Step) -> Step:
    """``rope_kv_write(q?, k, v, cos, sin, k_cache, v_cache, slots; interleaved) → turned q``."""
    return Step(
        "rope_kv_write",
        (query.args[0] if query else None, turn.args[0], write.args[1], *turn.args[1:3], *write.args[2:5]),
        turn.kwargs,
        query.results if query else (),
        path=write.path,
    )


def norm_branches(steps: list[Step]) -> list[Step]:
    """Put the norm (Gemma) or the factor (Granite) of a branch into the norm of the sum that it goes to."""
    readers = Counter(name for step in steps for name in step.reads())
    makers = {value.name: step for step in steps for value in step.results}
    made: dict[int, Step] = {}
    gone: set[int] = set()
    for step in steps:
        x = step.args[0] if step.kernel == "add_rms_norm" else None
        maker = makers.get(x.name) if isinstance(x, Value) and readers[x.name] == 1 else None
        if maker is None:
            continue
        if maker.kernel == "rms_norm" and maker.kwargs == step.kwargs:
            branch, factor = maker.args[1], 1.0
        elif maker.kernel == "aten.mul.Tensor" and _scales(maker):
            branch, factor = None, float(maker.args[1])  # type: ignore[arg-type]
        else:
            continue
        made[id(step)] = replace(
            step,
            kernel="branch_add_rms_norm",
            args=(maker.args[0], *step.args[1:], branch),
            kwargs={**step.kwargs, "factor": factor},
        )
        gone.add(id(maker))
    return [made.get(id(step), step) for step in steps if id(step) not in gone]


def add_layer_norms(steps: list[Step]) -> list[Step]:
    """Put the sum, or the two sums of parallel branches, before a ``layer_norm`` into it.

    It is done where the sum was: others may read that sooner.
    """
    readers = Counter(name for step in steps for name in step.reads())
    makers = {value.name: step for step in steps for value in step.results}
    made: dict[int, Step] = {}
    gone: set[int] = set()
    for step in steps:
        x = step.args[0] if step.kernel == "layer_norm" else None
        total = makers.get(x.name) if isinstance(x, Value) and len(x.type.shape) == 2 else None
        if total is None or id(total) in made or not _adds(total):
            continue
        first, second = total.args
        assert isinstance(first, Value) and isinstance(second, Value), f"{total.args = } of a sum"
        more: Value | None = None
        inner = makers.get(first.name)
        if inner is not None and readers[first.name] == 1 and _adds(inner) and id(inner) not in made:
            gone.add(id(inner))
            more, (first, second) = second, inner.args
        made[id(total)] = Step(
            "add_layer_norm",
            (first, second, more, *step.args[1:], *[None] * (3 - len(step.args))),
            step.kwargs,
            (*step.results, *total.results),
            path=step.path,
        )
        gone.add(id(step))
    return [made.get(id(step), step) for step in steps if id(step) not in gone]


def _adds(step: Step) -> bool:
    """Whether it is a sum of two values of one shape."""
    if step.kernel != "aten.add.Tensor" or step.kwargs or len(step.args) != 2:
        return False
    return all(isinstance(it, Value) and it.type == step.results[0].type for it in step.args)


def finish_logits(steps: list[Step], output: Value) -> list[Step]:
    """Put factors and a soft cap behind the LM head into one step, which takes the head's float32."""
    at, wanted, tail = len(steps), output, list[Step]()
    while at and steps[at - 1].results == (wanted,) and _finishes(steps[at - 1]):
        at -= 1
        tail.insert(0, steps[at])
        (wanted,) = (it for it in steps[at].args if isinstance(it, Value))
    heads = ("linear", "quant_linear")
    if not tail or not at or steps[at - 1].results != (wanted,) or steps[at - 1].kernel not in heads:
        return steps
    factors = [1.0]  # before each tanh, and behind the last
    for step in tail:
        if step.kernel == "aten.tanh":
            factors.append(1.0)
        else:
            factors[-1] *= float(step.args[1]) ** _SCALES[step.kernel]  # type: ignore[arg-type]
    if len(factors) > 2:
        return steps
    cap = factors[1] if len(factors) == 2 else None
    how = {"factor": factors[0] * (1.0 if cap is None else cap), "cap": cap}
    return [*steps[:at], Step("finish_logits", (wanted,), how, (output,), path=tail[-1].path)]


def _finishes(step: Step) -> bool:
    """Whether it is a product or quotient with a number, or a tanh."""
    return (step.kernel == "aten.tanh" and not step.kwargs) or _scales(step)


def _scales(step: Step) -> bool:
    """Whether it is a product or quotient with a number that is not 0."""
    if step.kernel not in _SCALES or step.kwargs or len(step.args) != 2:
        return False
    x, number = step.args
    return isinstance(x, Value) and isinstance(number, int | float) and bool(number)
