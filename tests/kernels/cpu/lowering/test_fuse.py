"""Every fusion: where it holds, and each thing that must stop it."""

import pytest

from optpipe.program import parse_program
from optpipe_kernels.cpu.lowering import lower
from optpipe_kernels.cpu.pack import quantized_bytes

HEAD = "input %x: f32[T, 64]\ninput %y: f32[T, 64]\n"
WEIGHT = "weight @w: f32[64, 64] stored f32\nweight @n: f32[64] stored f32\n"
PRODUCT = "%0: f32[T, 64] = aten.linear(%x, @w)\n"
QUANT = "weight @p: i32[64, 8] stored i32\nweight @s: f16[64, 2] stored f16\nweight @n: f32[64] stored f32\n"


def quantized(name, x):
    return f"{name}: f32[T, 64] = optpipe.quant_linear({x}, @p, @s, bits=4, group=32)\n"


def test_a_product_starts_from_what_is_added_to_it(fused, names):
    for sum_ in ("%0, %y", "%y, %0"):
        lowered = fused(f"{HEAD}{WEIGHT}{PRODUCT}%1: f32[T, 64] = aten.add.Tensor({sum_})\nreturn %1\n")
        assert names(lowered) == ["linear"]
        assert lowered.steps[0].reads[3].place.name == "y"
        assert lowered.output == lowered.steps[0].writes[0]


@pytest.mark.parametrize(
    ("rest", "kernels"),
    [
        ("%1: f32[T, 64] = aten.add.Tensor(%0, %0)\nreturn %1\n", ["linear", "add"]),
        ("%1: f32[T, 64] = aten.add.Tensor(%0, 1.0)\nreturn %1\n", ["linear", "add"]),
        (
            "%1: f32[T, 64] = aten.add.Tensor(%0, %y)\n%2: f32[T, 64] = aten.mul.Tensor(%1, %0)\nreturn %2\n",
            ["linear", "add", "mul"],
        ),
        (
            "%1: f32[T, 64] = aten.exp(%y)\n%2: f32[T, 64] = aten.add.Tensor(%0, %1)\nreturn %2\n",
            ["linear", "exp", "add"],
        ),
    ],
    ids=["the product twice", "a number", "the product is needed", "the other comes later"],
)
def test_a_sum_that_is_no_residual_stays(fused, names, rest, kernels):
    assert names(fused(HEAD + WEIGHT + PRODUCT + rest)) == kernels


def test_a_residual_then_a_norm_is_a_product_then_a_norm(fused, names):
    norm = "%1: f32[T, 64], %2: f32[T, 64] = optpipe.add_rms_norm(%0, %y, @n, eps=1e-05, unit_offset=true)\n"
    lowered = fused(f"{HEAD}{WEIGHT}{PRODUCT}{norm}%3: f32[T, 64] = aten.add.Tensor(%1, %2)\nreturn %3\n")
    assert names(lowered) == ["linear", "rms_norm", "add"]
    product, rms, add = lowered.steps
    assert product.reads[3].place.name == "y"
    assert rms.reads[0] == product.writes[0] == add.reads[1]
    assert (rms.ints, rms.floats) == ((1,), (1e-5,))


def test_a_norm_rounds_its_result_for_the_products_that_read_it(fused, names):
    norm = "%0: f32[T, 64] = optpipe.rms_norm(%x, @n, eps=1e-05, unit_offset=false)\n"
    lowered = fused(f"{HEAD}{QUANT}{norm}{quantized('%1', '%0')}return %1\n")
    assert names(lowered) == ["rms_norm", "quant_linear"]
    assert lowered.steps[0].writes[0] is None
    assert lowered.steps[0].writes[1] == lowered.steps[1].reads[0]


def test_and_keeps_the_plain_result_where_something_else_reads_it(fused, names):
    norm = "%0: f32[T, 64] = optpipe.layer_norm(%x, @n, None, eps=1e-05)\n"
    rest = quantized("%1", "%0") + "%2: f32[T, 64] = aten.mul.Tensor(%0, %1)\nreturn %2\n"
    lowered = fused(HEAD + QUANT + norm + rest)
    assert names(lowered) == ["layer_norm", "quant_linear", "mul"]
    assert None not in lowered.steps[0].writes


def test_an_input_is_rounded_by_itself(fused, names):
    assert names(fused(HEAD + QUANT + quantized("%1", "%x") + "return %1\n")) == ["quantize", "quant_linear"]


def test_a_gated_product_rounds_its_result(fused, names):
    text = (
        quantized("%0", "%x") + quantized("%1", "%x").replace("@p", "@o")
        + '%2: f32[T, 64] = optpipe.gated_act(%0, %1, kind="gelu")\n' + quantized("%3", "%2") + "return %3\n"
    )  # fmt: skip
    lowered = fused(HEAD + QUANT + "weight @o: i32[64, 8] stored i32\n" + text)
    assert names(lowered) == ["quantize", "quant_linear_gated", "quant_linear"]
    assert lowered.steps[1].writes[0] is None
    assert lowered.steps[1].writes[1] == lowered.steps[2].reads[0]


PAGED = (
    "input %query_start: i32[B + 1]\ninput %context_lens: i32[B]\ninput %block_tables: i32[B, M]\n"
    "input %slot_mapping: i64[T]\ninput %q: f32[T, 4, 16]\ninput %k: f32[T, 2, 16]\ninput %v: f32[T, 2, 16]\n"
    "input %cos: f32[T, 16]\ninput %sin: f32[T, 16]\n"
    "cache %k_cache.0: f32[P, 16, 2, 16]\ncache %v_cache.0: f32[P, 16, 2, 16]\n"
)
TURN_Q = "%0: f32[T, 4, 16] = optpipe.rope(%q, %cos, %sin, interleaved=false)\n"
TURN_K = "%1: f32[T, 2, 16] = optpipe.rope(%k, %cos, %sin, interleaved=false)\n"
WRITE = "optpipe.kv_write(%1, %v, %k_cache.0, %v_cache.0, %slot_mapping)\n"
ATTEND = (
    "%2: f32[T, 4, 16] = optpipe.paged_attention({q}, %k_cache.0, %v_cache.0, %query_start, %context_lens,"
    " %block_tables, scale=0.25)\n"
)


def test_turning_query_and_key_and_writing_is_one(fused, names):
    lowered = fused(PAGED + TURN_Q + TURN_K + WRITE + ATTEND.format(q="%0") + "return %2\n")
    assert names(lowered) == ["rope_kv_write", "paged_attention"]
    assert lowered.steps[0].writes[0] == lowered.steps[1].reads[0]


def test_a_query_that_is_turned_otherwise_stays_apart(fused, names):
    other = TURN_Q.replace("false", "true")
    lowered = fused(PAGED + other + TURN_K + WRITE + ATTEND.format(q="%0") + "return %2\n")
    assert names(lowered) == ["rope", "rope_kv_write", "paged_attention"]
    assert lowered.steps[1].reads[0] is None


def test_a_turned_key_that_something_else_reads_stays(fused, names):
    text = PAGED + TURN_K + WRITE + ATTEND.format(q="%q")
    lowered = fused(text + "%3: f32[T, 2, 16] = aten.exp(%1)\nreturn %3\n")
    assert names(lowered) == ["rope", "kv_write", "paged_attention", "exp"]


def test_a_query_that_something_needs_before_the_write_stays_apart(fused, names):
    early = "%5: f32[T, 4, 16] = aten.exp(%0)\n"
    lowered = fused(PAGED + TURN_Q + early + TURN_K + WRITE + ATTEND.format(q="%0") + "return %2\n")
    assert names(lowered) == ["rope", "exp", "rope_kv_write", "paged_attention"]


HEADED = (
    PAGED + "input %logit_rows: i64[R]\nweight @h: f32[100, 64] stored f32\n"
    "%1: f32[T, 2, 16] = aten.reshape(%k, [T, 2, 16])\n" + WRITE + ATTEND.format(q="%q")
    + "%3: f32[T, 64] = aten.reshape(%2, [T, 64])\n%4: f32[R, 64] = optpipe.gather_rows(%3, %logit_rows)\n"
)  # fmt: skip


def kernels(text):
    plans = lower(parse_program("optpipe.program 1\n" + text), quantized_bytes)
    return plans.logits.kernels, plans.greedy.kernels


def test_the_greedy_plan_keeps_only_the_best_logit():
    logits, greedy = kernels(HEADED + "%5: f32[R, 100] = aten.linear(%4, @h)\nreturn %5\n")
    assert logits == ["kv_write", "paged_attention", "index_select", "linear"]
    assert greedy == ["kv_write", "paged_attention", "index_select", "linear_argmax"]


def test_logits_that_are_changed_after_the_head_get_an_argmax():
    rest = "%5: f32[R, 100] = aten.linear(%4, @h)\n%6: f32[R, 100] = aten.tanh(%5)\nreturn %6\n"
    logits, greedy = kernels(HEADED + rest)
    assert logits[-2:] == ["linear", "tanh"]
    assert greedy[-3:] == ["linear", "tanh", "argmax"]
