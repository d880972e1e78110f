"""Routed experts: a router's choice as one step, and projections in the order that kernels read.

softmax → topk → sum, div       the weights of the chosen, made to sum to one (Mixtral, Qwen3)
softmax → topk                  the weights as they are (Qwen2)
topk → softmax                  as the first, in another order (gpt-oss)

Of equal logits the lowest ids are chosen, whatever the number of tokens: ``torch.topk`` promises no order on
a GPU, and 16-bit logits are often equal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from optpipe.program.program import DType, Value

from .recipes import Experts, Plain
from .steps import Argument, Step


class _Choice(NamedTuple):
    """What stands for a ``topk``: the logits, the weights, whether these sum to one, and what goes."""

    logits: Value
    weights: Value
    over_chosen: bool
    gone: tuple[Step, ...]


def choose_experts(steps: list[Step]) -> list[Step]:
    """Put every router's choice into one step."""
    makers = {value.name: step for step in steps for value in step.results}
    readers: dict[str, list[Step]] = {}
    for step in steps:
        for name in step.reads():
            readers.setdefault(name, []).append(step)
    made: dict[int, Step] = {}
    gone: set[int] = set()
    for step in steps:
        choice = _choice(step, makers, readers) if step.kernel == "aten.topk" else None
        if choice is not None:
            how = {"slots": step.args[1], "over_chosen": choice.over_chosen}
            results = (step.results[1], choice.weights)
            made[id(step)] = replace(
                step, kernel="choose_experts", args=(choice.logits,), kwargs=how, results=results
            )
            gone.update(id(it) for it in choice.gone)
    return [made.get(id(step), step) for step in steps if id(step) not in gone]


def arrange_experts(steps: list[Step]) -> list[Step]:
    """Have the projections of experts loaded in the compute dtype, in the order that kernels read."""
    return [_arranged(step) if step.kernel == "moe" else step for step in steps]


def _arranged(step: Step) -> Step:
    """The same ``moe`` over rows of inputs, gate's before up's."""
    transposed, interleaved = (bool(step.kwargs.get(name)) for name in ("transposed", "interleaved"))
    experts = step.args[3:]
    named = any(isinstance(it, Plain) for it in step.kwargs.values())
    if named or not all(it is None or isinstance(it, Plain) for it in experts):
        return step

    def turned(at: int, matrix: bool, halves: bool) -> Argument:
        plain = experts[at] if at < len(experts) else None
        return Experts(plain.name, matrix and transposed, halves) if isinstance(plain, Plain) else None

    matrices = turned(0, True, interleaved), turned(1, True, False)
    biases = turned(2, False, interleaved), turned(3, False, False)
    how = {name: it for name, it in step.kwargs.items() if name not in ("transposed", "interleaved")}
    return replace(step, args=(*step.args[:3], *matrices, *biases), kwargs=how)


def _choice(top: Step, makers: dict[str, Step], readers: dict[str, list[Step]]) -> _Choice | None:
    if len(top.args) != 2 or top.kwargs or not isinstance(top.args[1], int) or len(top.results) != 2:
        return None
    scores, values = top.args[0], top.results[0]
    if not isinstance(scores, Value) or len(scores.type.shape) != 2:
        return None
    before, behind = makers.get(scores.name), readers.get(values.name, [])
    if before is not None and _softmax(before) and readers[scores.name] == [top]:
        logits = before.args[0]
        assert isinstance(logits, Value), f"{logits = } of a softmax"
        shares = _shares(values, behind, readers)
        if shares is None:
            return _Choice(logits, values, False, (before,))
        return _Choice(logits, shares[1].results[0], True, (before, *shares))
    if len(behind) == 1 and _softmax(behind[0]):
        return _Choice(scores, behind[0].results[0], True, (behind[0],))
    return None


def _softmax(step: Step) -> bool:
    """Whether it is one over the last dimension of a matrix."""
    if step.kernel != "aten.softmax.int" or step.kwargs or not isinstance(step.args[0], Value):
        return False
    narrow = [it for it in step.args[2:] if it is not None and it != DType("f32")]
    return len(step.args[0].type.shape) == 2 and step.args[1] in (-1, 1) and not narrow


def _shares(values: Value, behind: list[Step], readers: dict[str, list[Step]]) -> tuple[Step, Step] | None:
    """The sum of the chosen weights and their division by it, where nobody else reads either."""
    if len(behind) != 2 or {it.kernel for it in behind} != {"aten.sum.dim_IntList", "aten.div.Tensor"}:
        return None
    total, share = sorted(behind, key=lambda it: it.kernel, reverse=True)
    if total.kwargs or total.args[1:] not in (((-1,), True), ((1,), True)) or share.kwargs:
        return None
    alone = readers.get(total.results[0].name) == [share]
    return (total, share) if alone and share.args == (values, total.results[0]) else None
