"""Attention that a model spells out itself, without transformers' attention functions.

Before: %s = softmax(S(q·kᵀ)); %y = %s·v           [1, H, T, ·] or [H, T, ·]
After:  %y = optpipe.attention(%q, %k, %v, alibi=…, scale=…, window=…, chunk=…)

S is settled by running it (``score_proof``); what is not proven is refused by name, because a softmax over
tokens that stays in the graph would mix the requests of a step.

Source: BLOOM, CodeGen, Falcon, GPT-J, GPT-Neo, MPT, XGLM and others in transformers 5.23.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

import optpipe.dialect  # noqa: F401  (declares the op)

from ..errors import TraceError
from ..graph.nodes import aten, is_call, path, set_constant, value
from ..weights.store import TensorWeight, Weights
from .score_proof import Meaning, Region, UnprovenError, prove

_SOFTMAX = (aten.softmax, aten._softmax, aten._safe_softmax)
_SDPA = aten.scaled_dot_product_attention
_PRODUCTS = (aten.matmul, aten.bmm, aten.baddbmm)
_UNCHANGED = (aten.to, aten.clone, aten.contiguous, aten.alias, aten.detach, aten.dropout, aten.type_as)
_RESHAPED = (aten.view, aten.reshape, aten._unsafe_view, aten.expand, aten.squeeze, aten.unsqueeze)


def match_attention(gm: fx.GraphModule, weights: Weights) -> int:
    """Rewrite every attention that the graph spells out, in place; return how many.

    It takes the graph with its captured masks (``optpipe::mask``), before they are folded: a model that
    spells out its attention adds the mask to its scores, so here one means 0 or the lowest number.

    Args:
        gm: a traced graph, its batch dimension of one still there.
        weights: values of its weights and buffers; ALiBi slopes are added to it.

    Raises:
        TraceError: a softmax over tokens is not proven to be causal attention.
    """
    count = 0
    for node in list(gm.graph.nodes):
        if is_call(node, _SDPA) or (is_call(node, *_SOFTMAX) and _is_over_tokens(node)):
            try:
                found = _sdpa(node) if is_call(node, _SDPA) else _spelled_out(node)
                _rewrite(gm, weights, found)
            except UnprovenError as reason:
                raise TraceError(
                    f"{path(node) or 'the model'} computes attention outside the attention functions, "
                    f"and {reason}."
                ) from None
            count += 1
    if count:
        gm.graph.eliminate_dead_code()
        gm.graph.lint()
    return count


class _Attention:
    """The parts of one spelled-out attention.

    Attributes:
        q: [1, H, T, D] or [H, T, D]; k and v alike, H may be H_kv.
        transposed: k is [·, D, T].
        scores: what enters the softmax, or a mask, or None.
        product: the node of q·kᵀ, or None when ``scores`` is only a mask.
        result: the node to replace.
        scale: a factor on top of what the scores say.
    """

    def __init__(
        self,
        operands: tuple[fx.Node, fx.Node, fx.Node],
        transposed: bool,
        scores: fx.Node | None,
        product: fx.Node | None,
        result: fx.Node,
        scale: float = 1.0,
    ) -> None:
        self.q, self.k, self.v = operands
        self.transposed = transposed
        self.scores, self.product, self.result, self.scale = scores, product, result, scale


def _is_over_tokens(softmax: fx.Node) -> bool:
    shape = value(softmax).shape
    dim = softmax.args[1]
    return isinstance(dim, int) and isinstance(shape[dim], torch.SymInt)


def _spelled_out(softmax: fx.Node) -> _Attention:
    """The attention around a softmax."""
    if softmax.args[1] not in (-1, value(softmax).ndim - 1):
        raise UnprovenError("its softmax does not run over the keys")
    scores = _node(softmax.args[0])
    product = _product_of(scores)
    q, k = product.args[-2:]
    result = _product_with_values(softmax)
    v = result.args[1]
    return _Attention((_node(q), _node(k), _node(v)), True, scores, product, result)


def _node(arg: object) -> fx.Node:
    assert isinstance(arg, fx.Node), f"{arg = } must be a node"
    return arg


def _product_of(scores: fx.Node) -> fx.Node:
    """The only product of data with data between the softmax and its inputs."""
    found: list[fx.Node] = []
    seen: set[fx.Node] = set()
    stack = [scores]
    while stack:
        node = stack.pop()
        if node in seen or not isinstance(value(node), torch.Tensor):
            continue
        seen.add(node)
        if is_call(node, *_PRODUCTS) and _is_square_in_tokens(node):
            found.append(node)
        else:
            stack.extend(node.all_input_nodes)
    if len(found) != 1:
        raise UnprovenError(f"its scores hold {len(found)} products over pairs of tokens, not one")
    return found[0]


def _is_square_in_tokens(node: fx.Node) -> bool:
    shape = value(node).shape
    return len(shape) in (3, 4) and all(isinstance(size, torch.SymInt) for size in shape[-2:])


def _product_with_values(softmax: fx.Node) -> fx.Node:
    """The product of the weights with v, past casts, dropout and views."""
    node = softmax
    while True:
        users = [user for user in node.users if user.users]
        if len(users) != 1:
            raise UnprovenError(f"its attention weights are used {len(users)} times")
        user = users[0]
        if is_call(user, aten.matmul, aten.bmm) and user.args[0] is node:
            return user
        if not is_call(user, *_UNCHANGED, *_RESHAPED) or not _is_square_in_tokens(user):
            raise UnprovenError(f"its attention weights are changed by {user.target}")
        if is_call(user, aten.dropout) and user.args[2]:
            raise UnprovenError("it drops attention weights at inference")
        node = user


def _sdpa(node: fx.Node) -> _Attention:
    """A direct call of torch's attention."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if given.get("dropout_p"):
        raise UnprovenError("it drops attention weights at inference")
    mask, causal = given.get("attn_mask"), given.get("is_causal", False)
    if mask is None and not causal:
        raise UnprovenError("a token sees tokens after it, so it is not causal")
    scale = given.get("scale")
    scale = float(scale) if scale is not None else float(value(given["query"]).shape[-1]) ** -0.5
    return _Attention((given["query"], given["key"], given["value"]), False, mask, None, node, scale)


def _rewrite(gm: fx.GraphModule, weights: Weights, found: _Attention) -> None:
    tokens = value(found.q).shape[-2]
    if not isinstance(tokens, torch.SymInt):
        raise UnprovenError("its number of tokens is fixed")
    meaning = Meaning(1.0, None, None, None)
    if found.scores is not None:
        meaning = prove(Region(found.scores, found.product, tokens.node.expr, weights))
    heads = [value(node).shape[-3] for node in (found.q, found.k, found.v)]
    if heads[1] != heads[2] or heads[0] % heads[1]:
        raise UnprovenError("it has {} query heads for {} of keys and {} of values".format(*heads))
    with gm.graph.inserting_before(found.result):
        build = _Builder(gm, found.result)
        q, v = (build.by_token(node) for node in (found.q, found.v))
        k = build.by_token(found.k, found.transposed)
        alibi = build.slopes(weights, meaning.slopes, int(heads[0]))
        named = {"scale": found.scale * meaning.scale, "window": meaning.window, "chunk": meaning.chunk}
        out = build.call(
            torch.ops.optpipe.attention.default,
            (q, k, v, None, None, alibi),
            {name: given for name, given in named.items() if given is not None},
        )
        out = build.call(aten.transpose.int, (out, 0, 1))
        if value(found.result).ndim == 4:
            out = build.call(aten.unsqueeze.default, (out, 0))
    found.result.replace_all_uses_with(out)


class _Builder:
    """Makes nodes in place of one, with fake values and its path."""

    def __init__(self, gm: fx.GraphModule, replaced: fx.Node) -> None:
        self._gm = gm
        self._path = path(replaced)

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> fx.Node:
        node = self._gm.graph.call_function(target, args, kwargs or {})
        fakes, named = fx.node.map_arg((node.args, node.kwargs), value)
        node.meta["val"] = target(*fakes, **named)
        node.meta["path"] = self._path
        return node

    def by_token(self, node: fx.Node, transposed: bool = False) -> fx.Node:
        """[1, H, T, D], [H, T, D] or their transposes as [T, H, D]."""
        if value(node).ndim == 4:
            node = self.call(aten.select.int, (node, 0, 0))
        if transposed:
            return self.call(aten.permute.default, (node, [2, 0, 1]))
        return self.call(aten.transpose.int, (node, 0, 1))

    def slopes(self, weights: Weights, slopes: torch.Tensor | None, heads: int) -> fx.Node | None:
        """A weight that holds the ALiBi slopes, next to the attention it serves."""
        if slopes is None:
            return None
        name = f"{self._path}.alibi_slopes" if self._path else "alibi_slopes"
        weights[name] = TensorWeight(slopes.expand(heads).contiguous())
        set_constant(self._gm, name, slopes.expand(heads))
        node = self._gm.graph.get_attr(name)
        # a fake of the graph's own mode, so that the op's fake can mix it with the others
        like = next(n for n in self._gm.graph.nodes if isinstance(value(n), torch.Tensor))
        with value(like).fake_mode:
            node.meta["val"] = torch.empty(heads)
        node.meta["path"] = self._path
        return node
