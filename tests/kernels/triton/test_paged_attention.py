from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from optpipe.errors import KernelError
from optpipe.testing import tolerance
from optpipe_kernels.triton.kv_cache import KINDS
from optpipe_kernels.triton.paged_attention import paged_attention
from optpipe_kernels.triton.rope_kv_write import kv_write

from .attention_cases import SPAN, Layer, expected, run, step, tail

# New tokens and contexts: alone; at and past the ends of a tile and of a span; idle; a chunk; a prompt.
MIXED = ([1, 1, 1, 0, 3, 1, 20, 33], [1, 16, SPAN, 0, SPAN + 1, 70, 45, 33])
DECODES = ([1, 2, 0, 1], [5, SPAN + 2, 0, 2 * SPAN])
OPTIONS = (
    {}, {"window": 7}, {"window": 40}, {"chunk": 24}, {"softcap": 3.0}, {"sinks": True}, {"alibi": True},
    {"sinks": True, "alibi": True, "softcap": 2.0, "window": 21},
)  # fmt: skip


def near(found, wanted):
    kind = str(wanted.dtype).removeprefix("torch.")
    torch.testing.assert_close(found, wanted, **tolerance(kind))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_equals_the_dialect(device, options):
    operands = step(Layer(), *MIXED, device=device, **options)
    near(run(operands, rows=32), expected(operands))


@pytest.mark.parametrize("options", [{}, {"window": 19, "sinks": True}], ids=("plain", "window"))
def test_equals_the_dialect_without_spans(place, options):
    operands = step(Layer(), *MIXED, **place, **options)
    near(run(operands, invariant=False), expected(operands))


@pytest.mark.parametrize(
    "layer",
    [
        Layer(heads=3, kv_heads=1, width=64, values=64, page=8),  # a group that is no power of two
        Layer(heads=2, kv_heads=2, width=80, values=48, page=24),  # nor are widths and pages; no group
        Layer(heads=2, kv_heads=1, width=96, values=96, page=1),
        Layer(heads=1, kv_heads=1, width=128, values=256, page=64),  # values in two programs
        Layer(heads=40, kv_heads=2, width=16, values=8, page=5),  # a group wider than a program
    ],
    ids=lambda layer: f"{layer.heads}h{layer.kv_heads}-{layer.width}x{layer.values}-p{layer.page}",
)
def test_sizes(place, layer):
    operands = step(layer, [1, 2, 20], [SPAN + 3, 9, 25], **place)
    near(run(operands), expected(operands))


def test_the_shipped_tiles_equal_the_dialect(place):
    operands = step(Layer(4, 2, 32, 32), [1, 1, 70], [1, 1100, 75], **place)
    found = paged_attention(
        operands.q, operands.k_cache, operands.v_cache, operands.query_start, operands.context_lens,
        operands.block_tables, scale=operands.scale, programs=4,
    )  # fmt: skip
    near(found, expected(operands))


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "alibi": True}], ids=["plain", "softcap"])
def test_caches_of_eight_bits(place, kind, options):
    operands = quantized(step(Layer(values=32), [1, 20], [SPAN + 9, 30], **place, **options), kind)
    near(run(operands, rows=32), expected(operands))


def quantized(operands, kind):
    """The same step over a cache of 8 bits, written by the kernel."""
    keys, values = (held.nan_to_num(0.0) for held in (operands.k_cache, operands.v_cache))
    held = [torch.zeros_like(x, dtype=kind) for x in (keys, values)]
    scales = [torch.zeros(x.shape[:3], device=x.device) for x in (keys, values)]
    slots = torch.arange(keys.shape[0] * keys.shape[1], device=keys.device)
    kv_write(keys.flatten(0, 1), values.flatten(0, 1), *held, slots, k_scales=scales[0], v_scales=scales[1])
    assert held[0].dtype in KINDS and scales[0].min() > 0
    return replace(operands, k_cache=held[0], v_cache=held[1], k_scales=scales[0], v_scales=scales[1])


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
def test_many_small_weights_are_not_lost_in_a_cache_of_eight_bits(place, kind):
    """A span's first key takes nearly all; the 1e-4 of it of the others add up, and float16 ends at 6e-8."""
    operands = step(Layer(), [1], [600], **place)
    keys, values = torch.zeros_like(operands.k_cache), torch.full_like(operands.v_cache, 0.02)
    first = operands.block_tables[0, 0]
    keys[first, 0], values[first, 0] = 6.0, 0.0
    query = torch.full_like(operands.q, 9.2 / 6.0 / 16 / 0.25)
    operands = quantized(replace(operands, q=query, k_cache=keys, v_cache=values), kind)
    reference = expected(replace(operands, q=query.float()))
    assert reference.min() > 1e-3
    torch.testing.assert_close(run(operands).float(), reference, rtol=0.02, atol=0)


def test_queries_in_a_fused_projection_and_a_cache_that_is_a_view(place):
    operands = step(Layer(), *DECODES, **place)
    wide = torch.randn(operands.q.shape[0], 9, operands.q.shape[2], **place)
    wide[:, 2:6] = operands.q
    layers = torch.stack((operands.k_cache, operands.v_cache), dim=1)
    views = replace(operands, q=wide[:, 2:6], k_cache=layers[:, 0], v_cache=layers[:, 1])
    assert not views.q.is_contiguous() and not views.k_cache.is_contiguous()
    assert torch.equal(run(views), run(operands))


def test_rows_of_no_sequence_are_zero(device):
    operands = step(Layer(), *DECODES, device=device)
    padded = replace(operands, q=torch.cat((operands.q, torch.full_like(operands.q[:3], torch.nan))))
    found = run(padded, programs=2)
    assert torch.equal(found[:-3], run(operands))
    assert torch.equal(found[-3:], torch.zeros_like(found[-3:]))


def test_a_prefill_alone_leaves_the_rows_of_no_sequence_zero(device):
    operands = step(Layer(), [20], [20], device=device)
    found = paged_attention(
        torch.cat((operands.q, operands.q[:3])), operands.k_cache, operands.v_cache, operands.query_start,
        operands.context_lens, operands.block_tables, scale=0.25,
    )  # fmt: skip
    assert torch.equal(found[20:], torch.zeros_like(found[20:]))


@pytest.mark.parametrize("programs", [1, 3, 100])
def test_the_grid_does_not_change_a_bit(device, programs):
    operands = step(Layer(), *DECODES, device=device)
    assert torch.equal(run(operands, programs=programs), run(operands))


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 37, "sinks": True}, {"chunk": 48, "softcap": 3.0}],
    ids=("plain", "window", "chunk"),
)
@pytest.mark.usefixtures("chained_dots")
def test_decode_verification_and_chunk_give_a_row_the_same_bits(options):
    prompt = step(Layer(), [3 * SPAN + 5, 40], [3 * SPAN + 5, 40], **options)
    whole = run(prompt, rows=32)
    for tokens in ([1, 1], [4, 7], [33, 1], [21, 40]):  # decoded, verified, one of each, in chunks
        part, rows = tail(prompt, tokens)
        assert torch.equal(run(part, rows=32), whole[rows])
    near(whole, expected(prompt))


def test_a_row_has_the_same_bits_beside_other_sequences(device):
    operands = step(Layer(), [1, 1, 30, 2], [70, 5, 64, 33], device=device)
    together = run(operands)
    for b in range(4):
        begin, end = operands.query_start[b : b + 2].tolist()
        alone = replace(
            operands,
            q=operands.q[begin:end],
            query_start=torch.tensor([0, end - begin], dtype=torch.int32, device=device),
            context_lens=operands.context_lens[b : b + 1],
            block_tables=operands.block_tables[b : b + 1],
        )
        assert torch.equal(run(alone), together[begin:end])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", [Layer(8, 2, 128, 128), Layer(4, 2, 256, 256), Layer(9, 3, 64, 64)])
def test_the_shipped_tiles_give_decode_and_prefill_the_same_bits(layer, dtype):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    prompt = step(layer, [2500, 300], [2500, 300], device="cuda", dtype=dtype)
    results = []
    for tokens in ([2500, 300], [1, 1], [4, 4], [700, 200]):
        part, rows = tail(prompt, tokens)
        found = paged_attention(
            part.q,
            part.k_cache,
            part.v_cache,
            part.query_start,
            part.context_lens,
            part.block_tables,
            scale=0.1,
        )
        results.append((found, rows))
    whole = results[0][0]
    for found, rows in results[1:]:
        assert torch.equal(found, whole[rows])
    wide = replace(
        prompt, q=prompt.q.double(), k_cache=prompt.k_cache.double(), v_cache=prompt.v_cache.double()
    )
    near(whole, expected(replace(wide, scale=0.1)).to(dtype))


def test_operands_that_do_not_fit_are_named():
    good = step(Layer(), [1], [3])
    arguments = {
        "q": good.q, "k_cache": good.k_cache, "v_cache": good.v_cache, "query_start": good.query_start,
        "context_lens": good.context_lens, "block_tables": good.block_tables, "scale": 0.25,
    }  # fmt: skip
    for change, message in (
        ({"v_cache": good.v_cache[:1]}, "got q"),
        ({"q": good.q[..., :8]}, "got q"),
        ({"q": good.q[:, :3]}, "H divisible by H_kv"),
        ({"q": good.q.transpose(1, 2).contiguous().transpose(1, 2)}, "contiguous"),
        ({"k_scales": torch.ones(1)}, "takes no k_scales"),
        ({"k_cache": good.k_cache.to(torch.int8), "v_cache": good.v_cache.to(torch.int8)}, "needs k_scales"),
        ({"scale": 0.0}, "positive scale"),
    ):
        with pytest.raises(KernelError, match=message):
            paged_attention(**{**arguments, **change})
