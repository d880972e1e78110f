from __future__ import annotations

import pytest
import torch

from optpipe.dialect.kv_write import kv_write as write_body
from optpipe.dialect.rope import rope as rope_body
from optpipe.errors import KernelError
from optpipe.testing import tolerance
from optpipe_kernels.triton.kv_cache import Cache
from optpipe_kernels.triton.rope_kv_write import kv_write, rope_kv_write
from optpipe_kernels.triton.rows import quantized_rows

NAMES = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


def near(found, expected):
    kind = str(expected.dtype).removeprefix("torch.")
    torch.testing.assert_close(found, expected, **tolerance(kind))


def operands(tokens, heads, kv_heads, width, values, page, **place):
    """q, k, v within one projection, and a cache of 4 pages with slots of which one is skipped."""
    sizes = [heads * width, kv_heads * width, kv_heads * values]
    q, k, v = torch.randn(tokens, sum(sizes), **place).split(sizes, dim=1)
    slots = torch.randperm(4 * page)[:tokens].to(place["device"])
    slots[tokens // 2] = -1
    keys = torch.full((4, page, kv_heads, width), 7.0, **place)
    cache = Cache(keys, torch.full((4, page, kv_heads, values), 7.0, **place), slots)
    return (
        q.unflatten(1, (heads, width)),
        k.unflatten(1, (kv_heads, width)),
        v.unflatten(1, (kv_heads, values)),
        cache,
    )


def written(k, v, cache):
    """The caches after the dialect's write."""
    keys, values = cache.keys.clone(), cache.values.clone()
    write_body(k, v, keys, values, cache.slots)
    return keys, values


@pytest.mark.parametrize(
    ("sizes", "rotary", "interleaved"),
    [
        ((5, 9, 3, 64, 64, 16), 64, False),
        ((3, 4, 2, 80, 48, 24), 32, False),
        ((4, 6, 3, 96, 96, 1), 24, True),
        ((7, 8, 8, 16, 16, 8), 16, True),
        ((3, 1, 1, 256, 512, 5), 256, False),
        ((2, 2, 130, 8, 8, 4), 2, False),
    ],
)
def test_equals_rope_then_write(place, sizes, rotary, interleaved):
    q, k, v, cache = operands(*sizes, **place)
    cos, sin = torch.randn(2, sizes[0], rotary, device=place["device"])
    keys, values = written(rope_body(k, cos, sin, interleaved=interleaved), v, cache)
    turned = rope_kv_write(q, k, v, cos, sin, cache, interleaved=interleaved)
    near(turned, rope_body(q, cos, sin, interleaved=interleaved))
    near(cache.keys, keys)
    assert torch.equal(cache.values, values)


def test_without_queries_keys_and_values_are_the_same(place):
    q, k, v, cache = operands(5, 4, 2, 16, 16, 8, **place)
    other = Cache(cache.keys.clone(), cache.values.clone(), cache.slots)
    cos, sin = torch.randn(2, 5, 16, device=place["device"])
    rope_kv_write(q, k, v, cos, sin, cache)
    assert rope_kv_write(None, k, v, cos, sin, other) is None
    assert torch.equal(other.keys, cache.keys) and torch.equal(other.values, cache.values)


@pytest.mark.parametrize("page", [1, 16, 24])
def test_plain_write_equals_the_dialect(place, page):
    _, k, v, cache = operands(4, 1, 3, 20, 33, page, **place)
    keys, values = written(k, v, cache)
    kv_write(k, v, cache.keys, cache.values, cache.slots)
    assert torch.equal(cache.keys, keys) and torch.equal(cache.values, values)


def test_no_tokens_write_nothing(place):
    _, k, v, cache = operands(1, 1, 2, 16, 16, 8, **place)
    before = cache.keys.clone()
    kv_write(k[:0], v[:0], cache.keys, cache.values, cache.slots[:0])
    assert torch.equal(cache.keys, before)


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("rotary", [None, 16, 64])
def test_a_cache_of_eight_bits_holds_the_rounded_rows_and_their_scales(place, kind, rotary):
    _, k, v, plain = operands(6, 2, 3, 64, 48, 8, **place)
    k[0, 0] = 0  # a head of zeros has a scale of 1
    scales = [torch.zeros(4, 8, 3, device=place["device"]) for _ in range(2)]
    held = [torch.zeros_like(x, dtype=kind) for x in (plain.keys, plain.values)]
    cache = Cache(*held, plain.slots, *scales)
    if rotary is None:
        kv_write(k, v, *held, plain.slots, k_scales=scales[0], v_scales=scales[1])
    else:
        cos, sin = torch.randn(2, 6, rotary, device=place["device"])
        rope_kv_write(None, k, v, cos, sin, cache)
        k = rope_body(k, cos, sin)
    kept = plain.slots >= 0
    at = plain.slots[kept]
    for rows, codes, scale in zip((k, v), held, scales, strict=True):
        wanted, wanted_scale = quantized_rows(rows[kept], NAMES[kind])
        torch.testing.assert_close(scale.flatten(0, 1)[at], wanted_scale, **tolerance("float32"))
        found = codes.flatten(0, 1)[at].float()
        step = 1.0 if kind is torch.int8 else 32.0  # a rotation rounded the other way may move a code by one
        assert (found - wanted.float()).abs().max() <= step
        assert (found == wanted.float()).float().mean() > 0.98
        assert codes.flatten(0, 1).float().abs().sum(dim=(1, 2)).count_nonzero() == len(at)
    assert scales[0].flatten(0, 1)[plain.slots[0], 0] == 1.0


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("at", [3, 20, 40], ids=["a first half", "a second half", "the rest"])
def test_what_is_not_a_number_is_none_in_a_cache_of_eight_bits(place, kind, at):
    _, k, v, plain = operands(4, 2, 2, 64, 48, 8, **place)
    k[1, 1, at], v[3, 0, at] = torch.nan, torch.nan
    scales = [torch.zeros(4, 8, 2, device=place["device"]) for _ in range(2)]
    cache = Cache(
        *(torch.zeros_like(x, dtype=kind) for x in (plain.keys, plain.values)), plain.slots, *scales
    )
    cos, sin = torch.randn(2, 4, 32, device=place["device"])
    rope_kv_write(None, k, v, cos, sin, cache)
    for scale, (token, head) in zip(scales, ((1, 1), (3, 0)), strict=True):
        expected = torch.full((4, 2), True)
        expected[token, head] = False
        found = scale.flatten(0, 1)[plain.slots].isfinite().cpu()  # of the skipped token: that of slot -1
        assert torch.equal(found[[0, 1, 3]], expected[[0, 1, 3]])


def test_operands_that_do_not_fit_are_named():
    _, k, v, cache = operands(4, 1, 2, 16, 16, 8, device="cpu", dtype=torch.float32)
    keys, values, slots = cache.keys, cache.values, cache.slots
    with pytest.raises(KernelError, match="4 keys, 3 values and 4 slots"):
        kv_write(k, v[:3], keys, values, slots)
    with pytest.raises(KernelError, match="do not fit caches"):
        kv_write(k[..., :8], v, keys, values, slots)
    with pytest.raises(KernelError, match="do not fit caches"):
        kv_write(k, v, keys, values.half(), slots)
    with pytest.raises(KernelError, match="needs k_scales and v_scales"):
        kv_write(k, v, keys.to(torch.int8), values.to(torch.int8), slots)
    with pytest.raises(KernelError, match="takes no k_scales"):
        kv_write(k, v, keys, values, slots, k_scales=torch.ones(4, 8, 2))
