"""Where a graph reads weights that can be stored in few bits.

    linear      aten.linear(x, W[N, K], bias?)
    transposed  aten.addmm(bias, x, W[K, N]), aten.mm(x, W), aten.matmul(x, W)      GPT-2's Conv1D
    embedding   aten.embedding(W[V, K], ids)
    experts     optpipe.moe(x, experts, weights, gate_up, down, …)

Routers are no sites: which expert a token goes to is not a matter of a little error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from optpipe.graph.nodes import aten, is_call, is_tensor, rank
from optpipe.pipeline.context import PassContext
from optpipe.weights.store import LazyWeight

from .gather_logits import find_head

Kind = Literal["linear", "embedding", "experts"]


@dataclass(frozen=True)
class Site:
    """One operation over stored weights.

    Attributes:
        node: the operation.
        kind: what it is.
        weights: names of the weights it reads; two for experts.
        at: which operand it multiplies them with (token ids for an embedding).
        bias_at: which operand is the bias.
        transposed: the weights lie inputs first, [K, N].
        head: it gives the logits.
    """

    node: fx.Node
    kind: Kind
    weights: tuple[str, ...]
    at: int
    bias_at: int | None = None
    transposed: bool = False
    head: bool = False

    @property
    def inputs(self) -> fx.Node:
        """What meets the weights, as the graph is now: an earlier rewrite may have replaced it."""
        found: fx.Node = self.node.args[self.at]  # type: ignore[assignment]
        return found

    @property
    def bias(self) -> fx.Node | None:
        """The bias, or None."""
        if self.bias_at is None or self.bias_at >= len(self.node.args):
            return None
        found: fx.Node | None = self.node.args[self.bias_at]  # type: ignore[assignment]
        return found

    def columns(self, weight: LazyWeight) -> int:
        """Inputs of a weight, K."""
        return weight.shape[-2 if self.transposed else -1]


def find_sites(graph: fx.Graph, cx: PassContext) -> Iterator[Site]:
    """Every site, in the order of the graph; linear layers without a stored weight are recorded as missed."""
    output = next(node for node in graph.nodes if node.op == "output")
    head, _ = find_head(output.args[0])
    routers = set(_routers(graph))
    for node in list(graph.nodes):
        if node in routers:
            cx.missed(node, "it chooses experts")
            continue
        site = _site(node, head is node)
        if isinstance(site, str):
            cx.missed(node, site)
        elif site is not None:
            yield site


def _site(node: fx.Node, head: bool) -> Site | str | None:
    if is_call(node, aten.linear.default):
        if not _stored(node.args[1], 2):
            return "its weight is computed"
        return Site(node, "linear", _names(node.args[1]), 0, 2, head=head)
    if is_call(node, aten.addmm.default, aten.mm.default, aten.matmul.default):
        *bias, x, weight = node.args
        if node.kwargs or not is_tensor(x) or not _stored(weight, 2) or _stored(x, 2):
            return None  # a product of activations, or scaled
        at = len(bias)
        return Site(node, "linear", _names(weight), at, 0 if bias else None, transposed=True, head=head)
    if is_call(node, aten.embedding.default) and _stored(node.args[0], 2):
        return Site(node, "embedding", _names(node.args[0]), 1)
    if is_call(node, torch.ops.optpipe.moe.default):
        both = node.args[3], node.args[4]
        if not all(_stored(weight, 3) for weight in both):
            return "its weights are computed"
        return Site(node, "experts", _names(*both), 0, transposed=bool(node.kwargs.get("transposed", False)))
    return None


def _routers(graph: fx.Graph) -> Iterator[fx.Node]:
    """Linear layers from which the choice and the weights of experts are computed."""
    for moe in graph.nodes:
        if not is_call(moe, torch.ops.optpipe.moe.default):
            continue
        waiting, seen = [moe.args[1], moe.args[2]], {moe.args[0]}
        while waiting:
            node = waiting.pop()
            if node in seen or not isinstance(node, fx.Node) or is_call(node, torch.ops.optpipe.moe.default):
                continue
            seen.add(node)
            if is_call(node, aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default):
                yield node
            else:
                waiting.extend(node.all_input_nodes)


def _stored(node: object, dims: int) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and is_tensor(node) and rank(node) == dims


def _names(*weights: object) -> tuple[str, ...]:
    return tuple(str(weight.target) for weight in weights if isinstance(weight, fx.Node))
