"""``attention`` against torch's, and against two loops that do one query and one head at a time."""

import math

import pytest
import torch
import torch.nn.functional as F

from optpipe.dialect.attention import ROWS_AT_ONCE, attention
from optpipe.errors import KernelError
from optpipe.testing import tolerance


def one_by_one(q, k, v, sinks=None, alibi=None, *, scale, window=None, chunk=None, softcap=None):
    """The formula, one query and one head at a time, in float64."""
    out = torch.zeros(q.shape[0], q.shape[1], v.shape[2], dtype=torch.float64)
    for i in range(q.shape[0]):
        keys = [
            j
            for j in range(i + 1)
            if (not window or i - j < window) and (not chunk or j // chunk == i // chunk)
        ]
        for h in range(q.shape[1]):
            g = h * k.shape[1] // q.shape[1]
            scores = [float(q[i, h].double() @ k[j, g].double()) * scale for j in keys]
            if softcap:
                scores = [softcap * math.tanh(s / softcap) for s in scores]
            if alibi is not None:
                scores = [s + float(alibi[h]) * (j - i) for s, j in zip(scores, keys, strict=True)]
            weights = [math.exp(s) for s in scores]
            total = sum(weights) + (math.exp(float(sinks[h])) if sinks is not None else 0.0)
            for w, j in zip(weights, keys, strict=True):
                out[i, h] += w / total * v[j, g].double()
    return out


def operands(randn, tokens, heads, kv_heads, dim, value_dim=None):
    return randn(tokens, heads, dim), randn(tokens, kv_heads, dim), randn(tokens, kv_heads, value_dim or dim)


OPTIONS = [
    {},
    {"window": 1},
    {"window": 4},
    {"window": 99},
    {"chunk": 5},
    {"chunk": 1},
    {"softcap": 1.5},
    {"window": 3, "softcap": 2.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("extra", ["", "sinks", "alibi", "sinks and alibi"])
@pytest.mark.parametrize("shape", [(13, 4, 2, 7, 5)], ids=str)
def test_is_the_formula(randn, shape, extra, options):
    q, k, v = operands(randn, *shape)
    sinks = randn(shape[1]) if "sinks" in extra else None
    alibi = torch.rand(shape[1], generator=torch.Generator().manual_seed(1)) if "alibi" in extra else None
    expected = one_by_one(q, k, v, sinks, alibi, scale=0.3, **options)
    found = attention(q, k, v, None, sinks, alibi, scale=0.3, **options)
    torch.testing.assert_close(found, expected.float(), **tolerance("float32"))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 8), (1, 9, 3, 5), (2, 4, 4, 24), (29, 6, 1, 3), (29, 8, 2, 80)], ids=str
)
def test_is_torchs_attention(randn, shape):
    q, k, v = operands(randn, *shape)
    heads_first = [x.transpose(0, 1) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*heads_first, is_causal=True, scale=0.25, enable_gqa=True)
    torch.testing.assert_close(
        attention(q, k, v, scale=0.25), expected.transpose(0, 1), **tolerance("float32")
    )


@pytest.mark.parametrize("window", [None, 37, 300])
def test_long_sequences_are_cut_into_rows_without_a_seam(randn, window):
    tokens = ROWS_AT_ONCE + 45
    q, k, v = operands(randn, tokens, 2, 1, 8)
    at = torch.arange(tokens)
    seen = (at[None] <= at[:, None]) & (at[None] > at[:, None] - (window or tokens))
    heads_first = [x.transpose(0, 1) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*heads_first, attn_mask=seen, scale=0.3, enable_gqa=True)
    found = attention(q, k, v, scale=0.3, window=window)
    torch.testing.assert_close(found, expected.transpose(0, 1), **tolerance("float32"))


def test_a_mask_hides_keys_beyond_what_is_causal(randn):
    q, k, v = operands(randn, 6, 2, 2, 4)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    mask[..., 2:, 0] = False
    found = attention(q, k, v, mask, scale=0.5)
    expected = F.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (q, k, v)), attn_mask=mask[0].tril(), scale=0.5
    )
    torch.testing.assert_close(found, expected.transpose(0, 1), **tolerance("float32"))


def test_float64_is_the_formula_to_float64(randn):
    q, k, v = (x.double() for x in operands(randn, 9, 4, 2, 6))
    expected = one_by_one(q, k, v, scale=0.3, window=4)
    torch.testing.assert_close(attention(q, k, v, scale=0.3, window=4), expected, **tolerance("float64"))


def test_later_tokens_change_nothing_before_them(randn):
    q, k, v = operands(randn, 9, 4, 2, 6)
    found = attention(q, k, v, scale=0.3)
    k[5:], v[5:], q[5:] = 99.0, 99.0, 99.0
    assert attention(q, k, v, scale=0.3)[:5].allclose(found[:5], atol=1e-6)


def test_heads_that_cannot_share_keys_are_refused(randn):
    with pytest.raises(KernelError, match="H divisible by H_kv, got 3 and 2"):
        attention(*operands(randn, 2, 3, 2, 4), scale=1.0)
