"""What stands between q·k and the softmax, settled by running it.

A model that builds its own attention computes ``softmax(S(q·kᵀ))``, where S scales, adds a bias and hides
keys in one of many spellings. S depends on nothing but the number of tokens, buffers and constants: that is
checked while it is evaluated. Then it is run on numbers and compared with the closed form

    S(P)[h, i, j] = scale · P[h, i, j] + slope[h] · (j − i) + anything of h and i     where i sees j
    visible       = j ≤ i, inside a window or a chunk

at a small length with random P, and at a length past every threshold in the graph with P = 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..dialect.mask import visible
from ..graph.nodes import aten, is_call, value
from ..weights.store import Weights

SHORT = 13  # tokens of the run with random products
LONG = 37  # tokens of the other run, at least
COARSE = 512  # tokens at which counting in bfloat16 shows: it skips integers from 257 on
HIDDEN = -9000.0  # scores below this are hidden: the mildest mask in use is −10,000, ALiBi stays above −4,096
MOST_SCORES = 1 << 26  # scores held at once
_MASK_MINIMUM = torch.finfo(torch.float32).min

_THRESHOLDS = (
    *(aten.lt, aten.le, aten.gt, aten.ge, aten.eq, aten.ne, aten.tril, aten.triu, aten.clamp),
    *(aten.add, aten.sub, aten.rsub, aten.floor_divide, aten.div),
)
_SHAPE_ONLY = (aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like)
_SHAPE_ONLY_NEW = (aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty)


class UnprovenError(Exception):
    """The scores are not what the dialect can say; the message is the reason, to follow "because"."""


@dataclass(frozen=True)
class Meaning:
    """A proven S.

    Attributes:
        scale: factor on q·k.
        slopes: [H] ALiBi slopes, or None.
        window, chunk: what is visible, beside j ≤ i.
    """

    scale: float
    slopes: torch.Tensor | None
    window: int | None
    chunk: int | None


@dataclass(frozen=True)
class Region:
    """The nodes from the product q·kᵀ (or none, for a mask alone) to the scores.

    Attributes:
        scores: the node that enters the softmax, [1, H, T, T] or [H, T, T].
        product: the node of q·kᵀ that the scores are a function of.
        symbol: the symbol of T.
        weights: values of buffers.
    """

    scores: fx.Node
    product: fx.Node | None
    symbol: Any
    weights: Weights


def prove(region: Region) -> Meaning:
    """What the scores mean.

    Raises:
        UnprovenError: they depend on data, or have another form.
    """
    bias = _run(region, SHORT, None)
    long_bias = _run(region, _long(region), None)
    window, chunk = _visibility(long_bias)
    slopes = _slopes(long_bias, window, chunk)
    _check_bias(bias, slopes, window, chunk)
    _check_bias(long_bias, slopes, window, chunk)
    scale = 1.0 if region.product is None else _scale(region, bias, window, chunk)
    if not slopes.any():
        return Meaning(scale, None, window, chunk)
    return Meaning(scale, slopes, window, chunk)


def _run(region: Region, tokens: int, product: torch.Tensor | None) -> torch.Tensor:
    """S as [H, T, T] float32; H is 1 where all heads are alike. No product stands for zeros."""
    if product is None and region.product is not None:
        heads = [1, _heads(region.product)]
        try:
            return _run(region, tokens, torch.zeros(1, 1, tokens, tokens).reshape(_rank(region, 1, tokens)))
        except UnprovenError:
            raise
        except Exception:  # a view that spells out the number of heads
            if heads[1] * tokens * tokens > MOST_SCORES:
                raise UnprovenError(f"its bias is too large to check over {tokens} tokens") from None
            product = torch.zeros(_rank(region, heads[1], tokens))
    scores: torch.Tensor = Evaluator(region, tokens, product)(region.scores)
    if scores.dtype is torch.bool:
        scores = torch.zeros(scores.shape).masked_fill(~scores, _MASK_MINIMUM)
    return scores.float().expand(*scores.shape[:-2], tokens, tokens).reshape(-1, tokens, tokens)


def _heads(product: fx.Node) -> int:
    return int(value(product).shape[-3])


def _rank(region: Region, heads: int, tokens: int) -> tuple[int, ...]:
    assert region.product is not None
    return (1, heads, tokens, tokens)[4 - value(region.product).ndim :]


class Evaluator:
    """Runs the nodes of a region with real numbers for a number of tokens."""

    def __init__(self, region: Region, tokens: int, product: torch.Tensor | None) -> None:
        self._region = region
        self._tokens = tokens
        self._known: dict[fx.Node, Any] = {}
        if region.product is not None:
            self._known[region.product] = self._scores_of(region.product, product)

    def _scores_of(self, node: fx.Node, product: torch.Tensor | None) -> torch.Tensor | None:
        """What a node yields whose q·k is ``product``: baddbmm adds and scales in the same step."""
        if product is None or not is_call(node, aten.baddbmm):
            return product
        added: torch.Tensor = self(node.args[0])  # type: ignore[arg-type]
        options: dict[str, Any] = node.kwargs
        beta, alpha = float(options.get("beta", 1)), float(options.get("alpha", 1))
        return added * beta + product * alpha

    def __call__(self, node: fx.Node) -> Any:
        """The node's real value."""
        if node not in self._known:
            self._known[node] = self._evaluate(node)
        return self._known[node]

    def _evaluate(self, node: fx.Node) -> Any:
        target: Any = node.target
        if isinstance(value(node), int | torch.SymInt):
            return self.size(value(node))
        if node.op == "get_attr":
            return self._region.weights[str(node.target)].load()
        if node.op == "placeholder":
            raise UnprovenError(f"what is added to its scores depends on '{node.name}'")
        if is_call(node, torch.ops.optpipe.mask):
            return self._mask(node)
        if is_call(node, *_SHAPE_ONLY, *_SHAPE_ONLY_NEW):
            like = value(node.args[0])
            stand_in = torch.empty([self.size(n) for n in like.shape], dtype=like.dtype)
            return target(stand_in, *self._real(node.args[1:]), **self._real(node.kwargs))
        args = self._real(node.args)
        if is_call(node, aten.where) and args[0].dtype.is_floating_point:  # a mask, asked whether it shows
            args = (args[0] == 0, *args[1:])
        return target(*args, **self._real(node.kwargs))

    def _mask(self, node: fx.Node) -> torch.Tensor:
        """A mask as models without the attention registry get it: 0 or the lowest number, to be added."""
        kind, size = node.kwargs["kind"], _size_of(node)
        seen = _seen(self._tokens, size if kind == "window" else None, size if kind == "chunk" else None)
        return torch.zeros(seen.shape).masked_fill(~seen, _MASK_MINIMUM)[None, None]

    def size(self, size: int | torch.SymInt) -> int:
        """A symbolic size at this number of tokens."""
        if isinstance(size, int):
            return size
        return int(size.node.expr.xreplace({self._region.symbol: self._tokens}))

    def _real(self, arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return self(arg)
        if isinstance(arg, torch.SymInt):
            return self.size(arg)
        if isinstance(arg, list | tuple):
            return type(arg)(self._real(item) for item in arg)
        if isinstance(arg, dict):
            return {name: self._real(item) for name, item in arg.items()}
        return arg


def _size_of(mask: fx.Node) -> int | None:
    size = mask.kwargs.get("size")
    return size if isinstance(size, int) else None


def _upstream(region: Region) -> Iterator[fx.Node]:
    """The scores and everything they are made of, the product's own operands left out."""
    seen: set[fx.Node] = set()
    stack = [region.scores]
    while stack:
        node = stack.pop()
        if node in seen or isinstance(value(node), int | torch.SymInt):
            continue
        seen.add(node)
        if node is region.product:
            stack.extend(node.args[:1] if is_call(node, aten.baddbmm) else ())  # type: ignore[arg-type]
            continue
        yield node
        if not is_call(node, torch.ops.optpipe.mask, *_SHAPE_ONLY, *_SHAPE_ONLY_NEW):
            stack.extend(node.all_input_nodes)


def _long(region: Region) -> int:
    """A number of tokens past every threshold that the scores could hold, as far as buffers reach."""
    threshold, limit = 0, 1 << 20
    for node in _upstream(region):
        if is_call(node, torch.ops.optpipe.mask):
            threshold = max(threshold, _size_of(node) or 0)
        if value(node).dtype in (torch.bfloat16, torch.float16):
            threshold = max(threshold, COARSE)
        if is_call(node, *_THRESHOLDS):
            threshold = max([threshold, *(abs(a) for a in node.args if type(a) is int)])
        if is_call(node, aten.slice) and (reach := _cut_to_tokens(node)) is not None:
            limit = min(limit, reach)
            if value(node.args[0]).shape[-2:].count(reach) == 2:
                threshold = max(threshold, reach)
    tokens = min(limit, max(LONG, 2 * threshold + 3))
    if tokens * tokens > MOST_SCORES:
        raise UnprovenError(f"its bias is too large to check over {tokens} tokens")
    return tokens


def _cut_to_tokens(node: fx.Node) -> int | None:
    """The fixed size of a dimension that a slice cuts to T, or None."""
    before, after = value(node.args[0]).shape, value(node).shape
    both = zip(before, after, strict=True)
    cut = [b for b, a in both if isinstance(b, int) and b > 1 and isinstance(a, torch.SymInt)]
    return min(cut, default=None)


def _visibility(bias: torch.Tensor) -> tuple[int | None, int | None]:
    """(window, chunk) of [H, T, T] biases; (None, None) is plain causal."""
    seen = bias > HIDDEN
    tokens = seen.shape[-1]
    if (seen != seen[:1]).any():
        raise UnprovenError("its heads do not see the same tokens")
    last = int(seen[0, -1].sum())
    first_lost = int((~seen[0, :, 0]).nonzero()[0]) if not seen[0, :, 0].all() else None
    candidates: list[tuple[int | None, int | None]] = [(None, None), (last, None), (None, first_lost)]
    for window, chunk in candidates:
        if torch.equal(seen[0], _seen(tokens, window, chunk)):
            return window, chunk
    if seen[0].triu(1).any():
        raise UnprovenError("a token sees tokens after it, so it is not causal")
    raise UnprovenError("what a token sees is neither causal, nor a window, nor a chunk")


def _seen(tokens: int, window: int | None, chunk: int | None) -> torch.Tensor:
    at = torch.arange(tokens)
    return visible(at[:, None], at[None, :], window, chunk)


def _slopes(bias: torch.Tensor, window: int | None, chunk: int | None) -> torch.Tensor:
    """[H] ALiBi slopes that the bias must have if it has any; zeros when flat."""
    tokens = bias.shape[-1]
    for row in range(tokens - 1, 0, -1):
        first = int(_seen(tokens, window, chunk)[row].nonzero()[0])
        if first < row:
            slopes = (bias[:, row, row] - bias[:, row, first]) / (row - first)
            return torch.where(slopes.abs() < 1e-7, 0.0, slopes)
    return torch.zeros(bias.shape[0])


def _check_bias(bias: torch.Tensor, slopes: torch.Tensor, window: int | None, chunk: int | None) -> None:
    tokens = bias.shape[-1]
    at = torch.arange(tokens)
    seen = _seen(tokens, window, chunk)
    distance = (at[None, :] - at[:, None]).float()
    for head in range(bias.shape[0]):
        if not torch.equal(bias[head] > HIDDEN, seen):
            raise UnprovenError(f"what a token sees at {tokens} tokens is not what it sees at another length")
        found = bias[head] - bias[head].diagonal()[:, None]
        wanted = slopes[head] * distance
        if not torch.allclose(found[seen], wanted[seen], rtol=1e-4, atol=1e-4):
            if torch.allclose(found[seen], wanted[seen], rtol=0.02, atol=0.02):
                raise UnprovenError("its ALiBi is rounded by the model's own code, and so not linear")
            raise UnprovenError("its bias is not ALiBi: it is not linear in the distance")


def _scale(region: Region, bias: torch.Tensor, window: int | None, chunk: int | None) -> float:
    assert region.product is not None
    generator = torch.Generator().manual_seed(0)
    product = torch.randn(_rank(region, _heads(region.product), SHORT), generator=generator)
    moved = (_run(region, SHORT, product) - bias)[:, _seen(SHORT, window, chunk)]
    flat = product.reshape(-1, SHORT, SHORT)[:, _seen(SHORT, window, chunk)]
    scale = float((moved * flat).sum() / (flat * flat).sum())
    if not torch.allclose(moved, scale * flat, rtol=1e-4, atol=1e-4):
        raise UnprovenError("its scores are not proportional to q·k")
    return _nice(scale)


def _nice(scale: float) -> float:
    """The scale without the rounding of the measurement: 1/√n exactly, when it is near one.

    >>> _nice(0.24999998), _nice(0.28867513), _nice(0.123)
    (0.25, 0.28867513459481287, 0.123)
    """
    inverse_square = round(1.0 / (scale * scale)) if scale > 0 else 0
    if inverse_square and abs(inverse_square**-0.5 - scale) < 1e-6 * scale:
        return float(inverse_square**-0.5)
    return scale
