"""The first k layers of a Program, and where there is none; whole models: kernels/cpu/test_layers.py."""

from __future__ import annotations

import pytest

from optpipe.errors import ArtifactError, RequestError
from optpipe.program import parse_program
from optpipe.program.early_exit import early_exit
from optpipe.testing import check_text

HEAD = """optpipe.program 1
input %input_ids: i64[T]
input %position_ids: i64[T]
input %logit_rows: i64[R]
input %slots: i64[T]
cache %k_cache.0: f32[P, 16, 1, 8]
cache %v_cache.0: f32[P, 16, 1, 8]
cache %k_cache.1: f32[P, 16, 1, 8]
cache %v_cache.1: f32[P, 16, 1, 8]
input %query_start: i32[B + 1]
input %context_lens: i32[B]
input %block_tables: i32[B, M]
weight @embed: f32[64, 8] stored f32
weight @norm: f32[8] stored f32
weight @end: f32[8] stored f32
%0: f32[T, 8] = aten.embedding(@embed, %input_ids)
%1: f32[T, 1, 8] = aten.reshape(%0, [T, 1, 8])
"""


def attention(layer, x, out):
    caches = f"%k_cache.{layer}, %v_cache.{layer}"
    return (
        f"optpipe.kv_write({x}, {x}, {caches}, %slots)\n"
        f"{out}: f32[T, 1, 8] = optpipe.paged_attention({x}, {caches}, %query_start, %context_lens, "
        f"%block_tables, scale=1.0)\n"
    )


TAIL = """%90: f32[R, 8] = optpipe.gather_rows(%89, %logit_rows)
%91: f32[R, 64] = aten.linear(%90, @embed)
return %91
"""
FUSED = (
    HEAD
    + attention(0, "%1", "%2")
    + "%3: f32[T, 8] = aten.reshape(%2, [T, 8])\n"
    + "%4: f32[T, 8], %5: f32[T, 8] = optpipe.add_rms_norm(%3, %0, @norm, eps=1e-05, unit_offset=false)\n"
    + "%6: f32[T, 1, 8] = aten.reshape(%4, [T, 1, 8])\n"
    + attention(1, "%6", "%7")
    + "%8: f32[T, 8] = aten.reshape(%7, [T, 8])\n"
    + "%89: f32[T, 8], %88: f32[T, 8] = optpipe.add_rms_norm(%8, %5, @end, eps=1e-06, unit_offset=false)\n"
    + TAIL
)


def test_the_sum_of_layer_k_goes_through_the_final_norm():
    check_text(
        early_exit(parse_program(FUSED), 1),
        """
        CHECK: %3: f32[T, 8] = aten.reshape(%2, [T, 8])
        CHECK-NEXT: %89: {{.*}} = optpipe.add_rms_norm(%3, %0, @end, eps=1e-06, unit_offset=false)
        CHECK-NEXT: %90: f32[R, 8] = optpipe.gather_rows(%89, %logit_rows)
        """,
    )


def test_a_plain_sum_and_a_norm_of_its_own():
    parted = FUSED.replace(
        "%89: f32[T, 8], %88: f32[T, 8] = optpipe.add_rms_norm(%8, %5, @end, eps=1e-06, unit_offset=false)",
        "%88: f32[T, 8] = aten.add.Tensor(%5, %8)\n"
        "%89: f32[T, 8] = optpipe.rms_norm(%88, @end, eps=1e-06, unit_offset=false)",
    )
    assert parted != FUSED
    check_text(
        early_exit(parse_program(parted), 1),
        """
        CHECK: %88: f32[T, 8] = aten.add.Tensor(%3, %0)
        CHECK-NEXT: %89: f32[T, 8] = optpipe.rms_norm(%88, @end, eps=1e-06, unit_offset=false)
        """,
    )


@pytest.mark.parametrize("layers", [-1, 0, 2, 3])
def test_a_number_of_layers_that_is_no_part(layers):
    with pytest.raises(RequestError, match=f"has 2 layers, so a part of it has from 1 to 1, not {layers}"):
        early_exit(parse_program(FUSED), layers)


def test_a_program_without_paged_attention_has_no_layers():
    text = HEAD + "%89: f32[T, 8] = aten.relu(%0)\n" + TAIL
    with pytest.raises(RequestError, match="has 0 layers"):
        early_exit(parse_program(text), 1)


def test_a_second_way_from_the_tokens_to_a_later_layer_is_refused():
    """As where each layer reads an embedding of its own."""
    text = FUSED.replace("aten.reshape(%4, [T, 1, 8])", "aten.reshape(%9, [T, 1, 8])").replace(
        "%6:", "%9: f32[T, 8] = aten.mul.Tensor(%4, %0)\n%6:"
    )
    with pytest.raises(ArtifactError, match=r"cannot be left after layer 1 of 2: no single sum leads on"):
        early_exit(parse_program(text), 1)


def test_a_later_layer_that_reads_an_earlier_one_s_cache_is_refused():
    """As where layers share keys and values: they do not come through the stream."""
    text = FUSED.replace("optpipe.paged_attention(%6, %k_cache.1", "optpipe.paged_attention(%6, %k_cache.0")
    assert text != FUSED
    with pytest.raises(ArtifactError, match="no single sum leads on from layer 1"):
        early_exit(parse_program(text), 1)


def test_a_stream_that_changes_its_width_is_refused():
    text = FUSED.replace(
        "%90: f32[R, 8] = optpipe.gather_rows(%89, %logit_rows)",
        "%86: f32[T, 16] = aten.cat([%89, %89], 1)\n"
        "%87: f32[T, 16] = aten.add.Tensor(%86, %86)\n"
        "%85: f32[R, 16] = optpipe.gather_rows(%87, %logit_rows)\n"
        "%90: f32[R, 8] = aten.slice.Tensor(%85, 1, 0, 8)",
    )
    with pytest.raises(ArtifactError, match=r"its stream is f32\[T, 8\] there and f32\[T, 16\] at the end"):
        early_exit(parse_program(text), 1)
