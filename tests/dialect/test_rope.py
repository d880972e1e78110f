"""``rope`` against rotation of pairs by an angle, and against transformers' both kinds."""

import math

import pytest
import torch

from optpipe.dialect.rope import rope
from optpipe.testing import tolerance


def tables(tokens, width, interleaved, start=0):
    """cos and sin [T, R], both channels of a pair with their own value."""
    angle = torch.arange(start, start + tokens)[:, None] / 10000 ** (torch.arange(width // 2) * 2 / width)
    both = angle.repeat_interleave(2, -1) if interleaved else torch.cat((angle, angle), -1)
    return both.cos(), both.sin()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("tokens", "heads", "dim", "width"), [(1, 1, 2, 2), (7, 3, 24, 24), (5, 2, 10, 6)])
def test_turns_every_pair_by_its_angle(randn, tokens, heads, dim, width, interleaved):
    x, expected = randn(tokens, heads, dim), None
    expected = x.clone()
    for t in range(tokens):
        for pair in range(width // 2):
            a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + width // 2)
            angle = t / 10000 ** (2 * pair / width)
            expected[t, :, a] = x[t, :, a] * math.cos(angle) - x[t, :, b] * math.sin(angle)
            expected[t, :, b] = x[t, :, b] * math.cos(angle) + x[t, :, a] * math.sin(angle)
    found = rope(x, *tables(tokens, width, interleaved), interleaved=interleaved)
    torch.testing.assert_close(found, expected, **tolerance("float32"))


@pytest.mark.parametrize(("module", "interleaved"), [("llama", False), ("cohere", True)])
def test_is_transformers_rope(randn, module, interleaved):
    import importlib

    modeling = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    cos, sin = tables(6, 16, interleaved)
    q, k = randn(1, 4, 6, 16), randn(1, 2, 6, 16)
    expected = modeling.apply_rotary_pos_emb(q, k, cos[None], sin[None])
    for x, turned in zip((q, k), expected, strict=True):
        found = rope(x[0].transpose(0, 1), cos, sin, interleaved=interleaved)
        torch.testing.assert_close(found, turned[0].transpose(0, 1), **tolerance("float32"))


def test_the_two_kinds_differ(randn):
    x, (cos, sin) = randn(3, 1, 8), tables(3, 8, False)
    assert not rope(x, cos, sin, interleaved=True).allclose(rope(x, cos, sin))


def test_channels_past_the_width_of_cos_pass_through(randn):
    x = randn(4, 2, 10)
    found = rope(x, *tables(4, 6, False))
    assert found[..., 6:].equal(x[..., 6:])
    assert not found[1:, :, :6].allclose(x[1:, :, :6])


def test_scores_depend_on_the_distance_alone(randn):
    q, k = randn(1, 1, 16).expand(5, 1, 16), randn(1, 1, 16).expand(5, 1, 16)
    near, far = (
        torch.einsum("thd,shd->ts", rope(q, *tables(5, 16, False, at)), rope(k, *tables(5, 16, False, at)))
        for at in (0, 100)
    )
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)  # angles of up to 104 rad are exact to 8e-6


def test_wide_tables_keep_their_precision(randn):
    """cos and sin in float32 over bfloat16 heads: computed in float32, rounded once."""
    x, (cos, sin) = randn(5, 2, 8, dtype=torch.bfloat16), tables(5, 8, False)
    assert rope(x, cos, sin).equal(rope(x.float(), cos, sin).bfloat16())
