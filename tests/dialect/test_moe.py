"""``moe`` and ``quant_moe`` against a loop over tokens and slots."""

import pytest
import torch
import torch.nn.functional as F

from optpipe.dialect.moe import moe
from optpipe.dialect.quant_moe import quant_moe
from optpipe.testing import tolerance

TOKENS, SLOTS, EXPERTS, K, INNER = 6, 2, 3, 32, 64


def gating(h, *, kind, gated=True, interleaved=False, limit=None, alpha=None, up_offset=0.0):
    act = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu}[kind]
    if not gated:
        return act(h)
    half = len(h) // 2
    gate, up = (h[::2], h[1::2]) if interleaved else (h[:half], h[half:])
    if limit is not None:
        gate, up = torch.minimum(gate, torch.tensor(limit)), torch.clip(up, -limit, limit)
    return (act(gate) if alpha is None else gate * torch.sigmoid(alpha * gate)) * (up + up_offset)


def one_by_one(x, experts, weights, first, second, first_bias=None, second_bias=None, **options):
    """Weights output first; a bias of None is none."""
    out = torch.zeros(len(x), second.shape[1], dtype=x.dtype)
    for t in range(len(x)):
        for s, e in enumerate(experts[t].tolist()):
            if 0 <= e < len(first):
                h = first[e] @ x[t] + (0 if first_bias is None else first_bias[e])
                h = second[e] @ gating(h, **options) + (0 if second_bias is None else second_bias[e])
                out[t] += weights[t, s] * h
    return out


@pytest.fixture
def routed(randn):
    experts = torch.tensor([[0, 2], [2, 1], [1, 0], [0, 1], [2, 0], [1, 2]])
    return randn(TOKENS, K), experts, randn(TOKENS, SLOTS)


OPTIONS = [
    {"kind": "silu"},
    {"kind": "gelu", "interleaved": True},
    {"kind": "relu", "gated": False},
    {"kind": "silu", "interleaved": True, "limit": 0.5, "alpha": 1.702, "up_offset": 1.0},
    {"kind": "silu", "limit": 0.25},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_is_the_loop(randn, routed, options, bias, transposed):
    width = INNER * (2 if options.get("gated", True) else 1)
    first, second = randn(EXPERTS, width, K) * 0.2, randn(EXPERTS, K, INNER) * 0.2
    biases = (randn(EXPERTS, width), randn(EXPERTS, K)) if bias else (None, None)
    expected = one_by_one(*routed, first, second, *biases, **options)
    if transposed:
        first, second = first.transpose(1, 2), second.transpose(1, 2)
    found = moe(*routed, first, second, *biases, transposed=transposed, **options)
    torch.testing.assert_close(found, expected, **tolerance("float32 sum"))


def test_experts_outside_the_range_contribute_nothing(randn, routed):
    x, experts, weights = routed
    experts = experts.clone()
    experts[0], experts[1] = torch.tensor([EXPERTS, -1]), torch.tensor([1, EXPERTS + 5])
    first, second = randn(EXPERTS, INNER, K), randn(EXPERTS, K, INNER)
    found = moe(x, experts, weights, first, second, kind="relu", gated=False)
    expected = one_by_one(x, experts, weights, first, second, kind="relu", gated=False)
    assert found[0].eq(0).all()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)  # outputs of about 100


def test_no_expert_at_all_gives_zeros(randn):
    x, nowhere = randn(2, K), torch.full((2, SLOTS), EXPERTS)
    first, second = randn(EXPERTS, INNER, K), randn(EXPERTS, K, INNER)
    found = moe(x, nowhere, randn(2, SLOTS), first, second, kind="relu", gated=False)
    assert found.equal(torch.zeros(2, K))


def test_a_token_may_choose_one_expert_twice(randn):
    x, twice, weights = randn(1, K), torch.tensor([[1, 1]]), torch.tensor([[0.25, 0.5]])
    first, second = randn(EXPERTS, INNER, K) * 0.2, randn(EXPERTS, K, INNER) * 0.2
    found = moe(x, twice, weights, first, second, kind="relu", gated=False)
    expected = one_by_one(x, twice, weights, first, second, kind="relu", gated=False)
    torch.testing.assert_close(found, expected, **tolerance("float32 sum"))


@pytest.mark.parametrize(("bits", "group", "minimum"), [(4, 32, True), (4, 32, False), (8, -1, False)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_packed_experts_are_the_experts_of_their_values(
    randn, quantized, routed, options, bits, group, minimum
):
    width = INNER * (2 if options.get("gated", True) else 1)
    grid = {"bits": bits, "group": group}
    first = quantized(EXPERTS, width, K, minimum=minimum, **grid)
    second = quantized(EXPERTS, K, INNER, minimum=minimum, **grid)
    biases = randn(EXPERTS, width), randn(EXPERTS, K)
    expected = moe(
        *(a.double() if a.is_floating_point() else a for a in routed), first[3], second[3], *biases, **options
    )
    x, experts, weights = (a.double() if a.is_floating_point() else a for a in routed)
    found = quant_moe(x, experts, weights, *first[:3], *second[:3], *biases, **grid, **options)
    torch.testing.assert_close(found, expected, **tolerance("float64"))
