"""``fuse-rope``: a rotary embedding in any spelling is one operation over [T, H, D].

Before: %a = aten.mul(%x, %cos); %b = aten.mul(rotate(%x), %sin); %y = aten.add(%a, %b)
        rotate: cat(−second half, first half), or stack(−odd, even) flattened
        or both halves by themselves: cat(first·cos − second·sin, second·cos + first·sin)
        or the pairs of [T, H, D/2, 2]: stack(even·cos − odd·sin, odd·cos + even·sin) flattened
        and, when only some channels turn: cat(%y, the rest)
After:  %y = optpipe.rope(%x, %cos, %sin, interleaved=…)
Guards: heads are dimension 0 or 1 of three; cos and sin are one row a token
Source: Su et al. 2021, "RoFormer", equation 34
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from optpipe.graph import match
from optpipe.graph.nodes import args_of, aten, is_call, is_tensor, positive, rank, same_size, shape
from optpipe.graph.sizes import as_arguments
from optpipe.pipeline import Pass, Stage
from optpipe.pipeline.context import PassContext


@dataclass(frozen=True)
class Turned:
    """What a rotary expression is made of: cos and sin as they are broadcast, over ``x``.

    Attributes:
        x: heads, tokens and channels; with ``pairs`` the channels are [D/2, 2].
        halves, pairs: cos and sin are half as wide as what turns: one value for a channel of each half, or
            for both of a pair.
    """

    x: fx.Node
    cos: fx.Node
    sin: fx.Node
    interleaved: bool
    halves: bool = False
    pairs: bool = False

    @property
    def sizes(self) -> list[int | torch.SymInt]:
        """The shape of what turns."""
        sizes = list(shape(self.x))
        return [*sizes[:-2], sizes[-2] * sizes[-1]] if self.pairs else sizes


@dataclass(frozen=True)
class FuseRope(Pass):
    """Rotate queries and keys in one operation, with heads where attention wants them."""

    name: ClassVar[str] = "fuse-rope"
    stage: ClassVar[Stage] = Stage.FUSE
    always: ClassVar[bool] = True

    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        for node in cx.nodes():
            found = turned(node)
            if found is None:
                continue
            reason = why_not(found)
            if reason is not None:
                cx.missed(node, reason)
                continue
            whole = widened(node, found.x)
            if whole is None:
                cx.replace(node, lambda: rope(cx, found, found.x))  # noqa: B023
            else:
                cx.replace(whole[0], lambda: rope(cx, found, whole[1]))  # noqa: B023


def rope(cx: PassContext, found: Turned, x: fx.Node) -> fx.Node:
    """The operation, between transposes when heads come first; those cancel later."""
    heads_first = _heads_first(found)
    if found.pairs:
        x = cx.call(aten.reshape.default, x, as_arguments(cx.gm.graph, found.sizes))
    source = cx.call(aten.permute.default, x, [1, 0, 2]) if heads_first else x
    cos, sin = (_rows(cx, table, found) for table in (found.cos, found.sin))
    out = cx.call(torch.ops.optpipe.rope.default, source, cos, sin, interleaved=found.interleaved)
    return cx.call(aten.permute.default, out, [1, 0, 2]) if heads_first else out


def _rows(cx: PassContext, table: fx.Node, found: Turned) -> fx.Node:
    sizes = [size for size in shape(table) if not same_size(size, 1)]
    source = match.regrouped(table)
    rows = cx.call(aten.reshape.default, source, as_arguments(cx.gm.graph, sizes))
    if found.pairs:
        both = cx.call(aten.stack.default, [rows, rows], -1)
        return cx.call(aten.reshape.default, both, as_arguments(cx.gm.graph, [sizes[0], 2 * sizes[1]]))
    return cx.call(aten.cat.default, [rows, rows], -1) if found.halves else rows


def turned(node: fx.Node) -> Turned | None:
    """The parts of a rotary expression, or None."""
    for left, right in match.operands(node, aten.add.Tensor):
        for x, cos in match.operands(left, aten.mul.Tensor):
            for rotated, sin in match.operands(right, aten.mul.Tensor):
                interleaved = rotation(rotated, x)
                if interleaved is not None and is_tensor(cos) and is_tensor(sin):
                    return Turned(x, cos, sin, interleaved)
    return turned_by_halves(node) or turned_by_pairs(node)


def rotation(node: object, x: object) -> bool | None:
    """Whether ``node`` rotates ``x``: by halves False, by neighbours True, not at all None."""
    parts = match.joined_last(node)
    if parts is not None and len(parts) == 2:
        second, first = match.part_of_last(match.negated(parts[0])), match.part_of_last(parts[1])
        if second and first and second[0] is first[0] is x:
            width = shape(second[0])[-1]
            half = width // 2
            if first[1:] == (0, half, 1) and second[1:] == (half, width, 1):
                return False
    pair = match.stacked_last(match.regrouped(node))
    if pair is not None and len(pair) == 2:
        odd, even = pair
        second, first = match.part_of_last(match.negated(odd)), match.part_of_last(even)
        if second and first and second[0] is first[0] is x and (first[1], second[1]) == (0, 1):
            return True if first[3] == second[3] == 2 else None
    return None


def turned_by_halves(node: fx.Node) -> Turned | None:
    """cat(first·cos − second·sin, second·cos + first·sin)."""
    parts = match.joined_last(node)
    if parts is None or len(parts) != 2 or not is_call(parts[0], aten.sub.Tensor):
        return None
    for first, cos in match.operands(parts[0].args[0], aten.mul.Tensor):
        for second, sin in match.operands(parts[0].args[1], aten.mul.Tensor):
            if not _completes(parts[1], first, second, cos, sin):
                continue
            low, high = match.part_of_last(first), match.part_of_last(second)
            if low is None or high is None or low[0] is not high[0]:
                continue
            half = low[2]
            if low[1:] == (0, half, 1) and high[1:] == (half, 2 * half, 1) == (half, shape(low[0])[-1], 1):
                return Turned(low[0], cos, sin, False, halves=True)
    return None


def turned_by_pairs(node: fx.Node) -> Turned | None:
    """stack(even·cos − odd·sin, odd·cos + even·sin), flattened."""
    pair = match.stacked_last(args_of(node)[0]) if is_call(node, aten.reshape.default) else None
    if pair is None or len(pair) != 2 or not is_call(pair[0], aten.sub.Tensor) or rank(node) != rank(pair[0]):
        return None
    if not all(map(same_size, shape(node)[:-1], shape(pair[0])[:-1])):
        return None
    for even, cos in match.operands(pair[0].args[0], aten.mul.Tensor):
        for odd, sin in match.operands(pair[0].args[1], aten.mul.Tensor):
            x = _paired(even, odd)
            if (
                x is not None
                and is_tensor(cos)
                and is_tensor(sin)
                and _completes(pair[1], even, odd, cos, sin)
            ):
                return Turned(x, cos, sin, True, pairs=True)
    return None


def _paired(even: object, odd: object) -> fx.Node | None:
    """What ``even`` and ``odd`` are the last dimension's only two elements of."""
    if not is_call(even, aten.select.int) or not is_call(odd, aten.select.int):
        return None
    (x, dim, first), (other, same, second) = args_of(even)[:3], args_of(odd)[:3]
    last = rank(x) - 1
    whole = (
        x is other
        and same_size(shape(x)[-1], 2)
        and positive(dim, last + 1) == positive(same, last + 1) == last
    )
    return x if whole and (first, second) == (0, 1) else None


def _completes(node: fx.Node, first: object, second: object, cos: object, sin: object) -> bool:
    for left, right in match.operands(node, aten.add.Tensor):
        if (second, cos) in match.operands(left, aten.mul.Tensor) and (first, sin) in match.operands(
            right, aten.mul.Tensor
        ):
            return True
    return False


def widened(node: fx.Node, x: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """When ``node`` turned only the first channels: the cat with the rest, and what they are channels of."""
    part = match.part_of_last(x)
    if part is None or len(node.users) != 1 or part[1] != 0 or part[3] != 1:
        return None
    whole = next(iter(node.users))
    pieces = match.joined_last(whole)
    if pieces is None or len(pieces) != 2 or pieces[0] is not node:
        return None
    rest = match.part_of_last(pieces[1])
    if rest is None or rest[0] is not part[0] or rest[1:] != (part[2], shape(part[0])[-1], 1):
        return None
    return whole, part[0]


def _heads_first(found: Turned) -> bool:
    """Whether x is [H, T, D], told by where cos has its tokens."""
    sizes = shape(found.cos)
    return rank(found.cos) == 2 or same_size(sizes[0], 1)


def why_not(found: Turned) -> str | None:
    turning = found.sizes
    if len(turning) != 3:
        return f"what it turns has {len(turning)} dimensions, not heads, tokens and channels"
    tokens = turning[1 if _heads_first(found) else 0]
    for table in (found.cos, found.sin):
        sizes = [size for size in shape(table) if not same_size(size, 1)]
        width = turning[-1] // (2 if found.halves or found.pairs else 1)
        if len(sizes) != 2 or not same_size(sizes[0], tokens) or not same_size(shape(table)[-1], width):
            return "cos and sin are not one row a token"
    return None
