"""``prune-vocab``: the language-model head computes the tokens that are likely, and no others.

Before: %y: f32[R, V] = aten.linear(%h, @lm_head.weight)      or optpipe.quant_linear(%h, packed, scale, …)
After:  %s: f32[R, K] = aten.linear(%h, @lm_head.weight_kept)       the first tokens and the special ones
        %low: f32[R, 1] = aten.amin(%s)                             what every other token gets
        %y: f32[R, V] = aten.index_select(aten.cat(%s, %low), @places)
Guards: the logits come from a product with stored weights; the vocabulary is larger than what is kept
Source: byte-pair encoding orders tokens by frequency (Sennrich et al. 2016); ONNX Runtime GenAI's pruned head
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import fx

from optpipe.dialect import OPS
from optpipe.pipeline import Contract, Lossy, Pass, Stage
from optpipe.pipeline.context import PassContext

aten = torch.ops.aten
HEADS = (aten.linear.default, OPS["quant_linear"].overload)


class Head(NamedTuple):
    """The product of V outputs that the logits come from; its weights all have V rows."""

    node: fx.Node
    size: int

    @property
    def weights(self) -> list[fx.Node]:
        """Values or codes, scales, minimums, bias: whatever it has."""
        return [arg for arg in self.node.args[1:] if isinstance(arg, fx.Node)]


def find_head(graph: fx.Graph) -> Head | None:
    """The product with the vocabulary, behind the operations on single logits that end some models."""
    node: Any = next(node for node in graph.nodes if node.op == "output").args[0]
    while isinstance(node, fx.Node) and node.op == "call_function":
        if node.target in HEADS:
            return Head(node, int(node.meta["val"].shape[-1]))
        if torch.Tag.pointwise not in getattr(node.target, "tags", ()):
            return None
        node = node.args[0]
    return None


def special_tokens(config: dict[str, Any]) -> Iterator[int]:
    """The ids that a model's config gives a role: bos, eos, pad and so on."""
    for key, value in config.items():
        if key.endswith("_token_id"):
            yield from (it for it in (value if isinstance(value, list) else [value]) if isinstance(it, int))


def pruned(head: Head, kept: torch.Tensor, cx: PassContext) -> fx.Node:
    """Logits [R, V] from the rows ``kept`` [K] of the head's weights.

    A packed weight is cut as a plain one: every row has its own codes and scales.
    """
    rows = {weight: rows_of(weight, kept, cx) for weight in head.weights}
    places = torch.full((head.size,), len(kept), dtype=torch.int64)
    places[kept] = torch.arange(len(kept))
    args = [rows.get(arg, arg) if isinstance(arg, fx.Node) else arg for arg in head.node.args]
    few = cx.call(head.node.target, *args, **head.node.kwargs)
    lowest = cx.call(aten.amin.default, few, [-1], True)
    both = cx.call(aten.cat.default, [few, lowest], -1)
    name = f"{head.weights[0].target}_places"
    return cx.call(aten.index_select.default, both, 1, cx.set_constant(name, places))


def rows_of(weight: fx.Node, kept: torch.Tensor, cx: PassContext) -> fx.Node:
    """Some rows of a stored weight, under a new name: under the old one others would load it."""
    stored = cx.weight(weight)
    assert stored is not None, f"{weight = } was guarded"
    return cx.set_weight(f"{weight.target}_kept", stored.rows(kept), weight.meta["val"].dtype)


@dataclass(frozen=True)
class PruneVocab(Pass):
    """Compute logits for the likely tokens only.

    Args:
        keep: how many tokens from the front of the vocabulary.
        max_kld: the divergence from the source that is allowed, in nats.
    """

    keep: int = 32768
    max_kld: float = 0.05

    name: ClassVar[str] = "prune-vocab"
    stage: ClassVar[Stage] = Stage.QUANT
    after: ClassVar[tuple[str, ...]] = ("quant",)

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}")

    def contract(self) -> Contract:
        """Tokens that are left out get a probability near nothing."""
        return Lossy(max_kld=self.max_kld)

    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        """Rewrite the head, when there is one that can be."""
        output = next(node for node in graph.nodes if node.op == "output")
        head = find_head(graph)
        if head is None or any(cx.weight(weight) is None for weight in head.weights):
            cx.missed(output, "the logits do not come from a product with stored weights")
            return
        special = {it for it in special_tokens(cx.config) if 0 <= it < head.size}
        kept = torch.tensor(sorted({*range(min(self.keep, head.size)), *special}))
        if len(kept) >= head.size:
            cx.missed(head.node, f"the vocabulary has only {head.size} tokens")
            return
        cx.replace(head.node, partial(pruned, head, kept, cx), what="prune-vocab")
