"""Attention that a model spells out: every spelling in use is proven, everything else is refused by name."""

import re

import pytest
import torch
from torch import nn

import optpipe.dialect  # noqa: F401
from optpipe.errors import TraceError
from optpipe.graph.interpreter import Interpreter
from optpipe.graph.nodes import is_call
from optpipe.tracing.bypass import match_attention
from optpipe.tracing.normalize import normalize
from optpipe.weights.store import TensorWeight, Weights

HEADS, WIDTH, MOST = 4, 8, 64


class Spelled(nn.Module):
    """Attention of q, k, v [1, H, T, D] whose scores a function of q·kᵀ makes."""

    def __init__(self, scores, buffers=None, scale=1.0):
        super().__init__()
        self.scores, self.scale = scores, scale
        for name, tensor in (buffers or {}).items():
            self.register_buffer(name, tensor)

    def forward(self, q, k, v):
        product = torch.matmul(q, k.transpose(-1, -2)) * self.scale
        weight = torch.softmax(self.scores(self, product, q), dim=-1)
        return torch.matmul(nn.functional.dropout(weight, 0.1, training=False), v)


def exported(module, kv_heads=HEADS, most=MOST):
    """The module's graph over a symbolic T, with the values of its buffers."""
    tokens = torch.export.Dim("T", min=2, max=most - 1)
    example = tuple(torch.randn(1, heads, 11, WIDTH) for heads in (HEADS, kv_heads, kv_heads))
    program = torch.export.export(module, example, dynamic_shapes=({2: tokens},) * 3, strict=False)
    gm, origins = normalize(program, {})
    state = {**program.state_dict, **program.constants}
    weights = Weights()
    for name, origin in origins.items():
        weights[name] = TensorWeight(state[origin])
    return gm, weights


def matched(module, kv_heads=HEADS, most=MOST):
    """(the attention calls, the largest difference from the module at three lengths)"""
    gm, weights = exported(module, kv_heads, most)
    assert match_attention(gm, weights) == 1
    worst = 0.0
    for tokens in (2, 30, most - 1):
        operands = [torch.randn(1, heads, tokens, WIDTH) for heads in (HEADS, kv_heads, kv_heads)]
        found = Interpreter(gm, weights).run(dict(zip("qkv", operands, strict=True)))
        worst = max(worst, float((found - module(*operands)).abs().max()))
    return [node for node in gm.graph.nodes if is_call(node, torch.ops.optpipe.attention)], worst


def tril(tokens=MOST):
    return torch.tril(torch.ones(1, 1, tokens, tokens, dtype=torch.bool))


def cut(buffer, like):
    return buffer[:, :, : like.shape[2], : like.shape[2]]


def causal_where(self, product, q):
    return torch.where(cut(self.seen, product), product, torch.finfo(torch.float32).min)


def causal_minus_ten_thousand(self, product, q):
    seen = cut(self.seen, product)
    return product * seen + -1e4 * (1 - seen.float())


def distance(like):
    at = torch.arange(like.shape[2])
    return at[:, None] - at[None, :]


def slopes():
    return torch.tensor([0.5, 0.25, 0.3, 0.01]).view(1, HEADS, 1, 1)


@pytest.mark.parametrize("scores", [causal_where, causal_minus_ten_thousand])
def test_a_causal_buffer_is_causal(scores):
    [node], worst = matched(Spelled(scores, {"seen": tril()}, scale=0.3))
    assert worst < 1e-5
    assert node.kwargs == {"scale": pytest.approx(0.3, rel=1e-6)}


def test_the_scale_is_exact_when_it_is_a_root():
    [node], _ = matched(Spelled(causal_where, {"seen": tril()}, scale=WIDTH**-0.5))
    assert node.kwargs["scale"] == WIDTH**-0.5


def test_a_window_longer_than_a_short_probe_is_found():
    def scores(self, product, q):
        far = distance(product)
        return product.masked_fill((far < 0) | (far >= 50), float("-inf"))

    [node], worst = matched(Spelled(scores), most=200)
    assert node.kwargs["window"] == 50
    assert worst < 1e-5


def test_a_window_in_a_buffer_is_found():
    seen = tril() ^ torch.tril(tril(), -7)
    [node], worst = matched(Spelled(causal_where, {"seen": seen}))
    assert node.kwargs["window"] == 7
    assert worst < 1e-5


def test_chunks_are_found():
    def scores(self, product, q):
        at = torch.arange(product.shape[2])
        seen = (at[:, None] >= at) & (at[:, None] // 8 == at // 8)
        return product.masked_fill(~seen, float("-inf"))

    [node], worst = matched(Spelled(scores))
    assert node.kwargs["chunk"] == 8
    assert worst < 1e-5


def test_a_captured_mask_is_added():
    def scores(self, product, q):
        hidden = torch.ops.optpipe.mask(q[:, 0], kind="window", size=5)
        return product + hidden

    gm, weights = exported(Spelled(scores))
    match_attention(gm, weights)
    [node] = [n for n in gm.graph.nodes if is_call(n, torch.ops.optpipe.attention)]
    assert node.kwargs["window"] == 5


@pytest.mark.parametrize("shift", [0, 512])
def test_alibi_is_found_however_it_counts(shift):
    def scores(self, product, q):
        bias = self.slope * (torch.arange(product.shape[2]) - shift)
        return causal_where(self, product + bias, q)

    [node], worst = matched(Spelled(scores, {"seen": tril(), "slope": slopes()}))
    assert node.args[5].target == "alibi_slopes"
    assert worst < 1e-4 * max(1, shift)


def test_few_heads_of_keys_are_kept_few():
    [node], worst = matched(Spelled(causal_where, {"seen": tril()}), kv_heads=1)
    assert worst < 1e-5
    assert node.args[1].meta["val"].shape[1] == 1


def test_torch_attention_is_rewritten_too():
    class Fused(nn.Module):
        def forward(self, q, k, v):
            return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    [node], worst = matched(Fused())
    assert node.kwargs["scale"] == WIDTH**-0.5
    assert worst < 1e-5


def everything(self, product, q):
    return product


def data_dependent(self, product, q):
    return causal_where(self, product + q.sum(-1)[:, :, None], q)


def one_later(self, product, q):
    return product.masked_fill(distance(product) < -1, float("-inf"))


def dilated(self, product, q):
    far = distance(product)
    return product.masked_fill((far < 0) | (far % 2 == 1), float("-inf"))


def t5_like(self, product, q):
    return causal_where(self, product + torch.log1p(distance(product).abs().float()), q)


def per_head(self, product, q):
    far = distance(product)[None]
    size = torch.tensor([3, 4, 5, 6]).view(1, HEADS, 1, 1)
    return product.masked_fill((far < 0) | (far >= size), float("-inf"))


def squared(self, product, q):
    return causal_where(self, product * product, q)


def rounded_alibi(self, product, q):
    bias = (self.slope.bfloat16() * torch.arange(product.shape[2]).bfloat16()).float()
    return causal_where(self, product + bias, q)


REFUSED = {
    everything: "it is not causal",
    data_dependent: "depends on 'q'",
    one_later: "it is not causal",
    dilated: "neither causal, nor a window, nor a chunk",
    t5_like: "not linear in the distance",
    per_head: "do not see the same tokens",
    squared: "not proportional to q·k",
    rounded_alibi: "rounded by the model's own code",
}


@pytest.mark.parametrize("scores", REFUSED, ids=lambda scores: scores.__name__)
def test_what_is_not_proven_is_refused_by_name(scores):
    gm, weights = exported(Spelled(scores, {"seen": tril(), "slope": slopes()}))
    with pytest.raises(TraceError, match=re.escape(REFUSED[scores])):
        match_attention(gm, weights)


def test_torch_attention_without_a_mask_is_refused():
    class Open(nn.Module):
        def forward(self, q, k, v):
            return nn.functional.scaled_dot_product_attention(q, k, v)

    gm, weights = exported(Open())
    with pytest.raises(TraceError, match="not causal"):
        match_attention(gm, weights)


def test_weights_that_are_read_twice_are_refused():
    class Twice(Spelled):
        def forward(self, q, k, v):
            product = torch.matmul(q, k.transpose(-1, -2))
            weight = torch.softmax(causal_where(self, product, q), dim=-1)
            return torch.matmul(weight, v) + weight.sum(-1, keepdim=True)

    gm, weights = exported(Twice(None, {"seen": tril()}))
    with pytest.raises(TraceError, match="used 2 times"):
        match_attention(gm, weights)


def test_a_softmax_over_experts_is_left_alone():
    class Router(nn.Module):
        def forward(self, q, k, v):
            return torch.softmax(q, dim=-1) * v

    gm, weights = exported(Router())
    assert match_attention(gm, weights) == 0
