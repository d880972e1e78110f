"""``fuse-rope``: rotations in every spelling, and what only looks like one."""

import pytest

from optpipe_passes.fuse_rope import FuseRope

TOKENS_FIRST = """
    input %x: f32[T, 3, 8]
    input %c: f32[T, 8]
    input %s: f32[T, 8]
    %cos: f32[T, 1, 8] = aten.reshape(%c, [T, 1, 8])
    %sin: f32[T, 1, 8] = aten.reshape(%s, [T, 1, 8])
"""
HALVES = """
    %1: f32[T, 3, 8] = aten.mul.Tensor(%x, %cos)
    %2: f32[T, 3, 4] = aten.slice.Tensor(%x, -1, 0, 4)
    %3: f32[T, 3, 4] = aten.slice.Tensor(%x, -1, 4, 9223372036854775807)
    %4: f32[T, 3, 4] = aten.neg(%3)
    %5: f32[T, 3, 8] = aten.cat([%4, %2], -1)
    %6: f32[T, 3, 8] = aten.mul.Tensor(%5, %sin)
    %7: f32[T, 3, 8] = aten.add.Tensor(%1, %6)
    return %7
"""
NEIGHBOURS = """
    %1: f32[T, 3, 8] = aten.mul.Tensor(%x, %cos)
    %2: f32[T, 3, 4] = aten.slice.Tensor(%x, -1, 0, 9223372036854775807, 2)
    %3: f32[T, 3, 4] = aten.slice.Tensor(%x, -1, 1, 9223372036854775807, 2)
    %4: f32[T, 3, 4] = aten.neg(%3)
    %5: f32[T, 3, 4, 2] = aten.stack([%4, %2], -1)
    %55: f32[T, 3, 8] = aten.reshape(%5, [T, 3, 8])
    %6: f32[T, 3, 8] = aten.mul.Tensor(%55, %sin)
    %7: f32[T, 3, 8] = aten.add.Tensor(%1, %6)
    return %7
"""
CHUNKED = HALVES.replace(
    "%2: f32[T, 3, 4] = aten.slice.Tensor(%x, -1, 0, 4)",
    "%2: f32[T, 3, 4], %3: f32[T, 3, 4] = aten.split.Tensor(%x, 4, -1)",
).replace("    %3: f32[T, 3, 4] = aten.slice.Tensor(%x, -1, 4, 9223372036854775807)\n", "")
BY_HALVES = """
    input %x: f32[T, 3, 8]
    input %c: f32[T, 4]
    input %s: f32[T, 4]
    %cos: f32[T, 1, 4] = aten.reshape(%c, [T, 1, 4])
    %sin: f32[T, 1, 4] = aten.reshape(%s, [T, 1, 4])
    %1: f32[T, 3, 4], %2: f32[T, 3, 4] = aten.split.Tensor(%x, 4, -1)
    %3: f32[T, 3, 4] = aten.mul.Tensor(%1, %cos)
    %4: f32[T, 3, 4] = aten.mul.Tensor(%2, %sin)
    %5: f32[T, 3, 4] = aten.sub.Tensor(%3, %4)
    %6: f32[T, 3, 4] = aten.mul.Tensor(%2, %cos)
    %7: f32[T, 3, 4] = aten.mul.Tensor(%1, %sin)
    %8: f32[T, 3, 4] = aten.add.Tensor(%6, %7)
    %9: f32[T, 3, 8] = aten.cat([%5, %8], -1)
    return %9
"""
BY_PAIRS = """
    input %w: f32[T, 24]
    input %c: f32[T, 4]
    input %s: f32[T, 4]
    %cos: f32[T, 1, 4] = aten.reshape(%c, [T, 1, 4])
    %sin: f32[T, 1, 4] = aten.reshape(%s, [T, 1, 4])
    %x: f32[T, 3, 4, 2] = aten.reshape(%w, [T, 3, 4, 2])
    %1: f32[T, 3, 4] = aten.select.int(%x, 3, 0)
    %2: f32[T, 3, 4] = aten.select.int(%x, -1, 1)
    %3: f32[T, 3, 4] = aten.mul.Tensor(%1, %cos)
    %4: f32[T, 3, 4] = aten.mul.Tensor(%2, %sin)
    %5: f32[T, 3, 4] = aten.sub.Tensor(%3, %4)
    %6: f32[T, 3, 4] = aten.mul.Tensor(%1, %sin)
    %7: f32[T, 3, 4] = aten.mul.Tensor(%2, %cos)
    %8: f32[T, 3, 4] = aten.add.Tensor(%6, %7)
    %9: f32[T, 3, 4, 2] = aten.stack([%5, %8], -1)
    %10: f32[T, 3, 8] = aten.reshape(%9, [T, 3, 8])
    return %10
"""
SLICED = """
    input %w: f32[T, 3, 20]
    input %c: f32[T, 8]
    input %s: f32[T, 8]
    %cos: f32[T, 1, 8] = aten.reshape(%c, [T, 1, 8])
    %sin: f32[T, 1, 8] = aten.reshape(%s, [T, 1, 8])
    %x: f32[T, 3, 8] = aten.slice.Tensor(%w, -1, 0, 8)
    %rest: f32[T, 3, 12] = aten.slice.Tensor(%w, -1, 8, 9223372036854775807)
"""
JOINED = "%8: f32[T, 3, 20] = aten.cat([%7, %rest], -1)\n    return %8"


def test_fuses_halves(rewrite):
    made = rewrite(FuseRope(), TOKENS_FIRST + HALVES).agrees(1, 9)
    made.check("CHECK: %0: f32[T, 3, 8] = optpipe.rope(%x, %c, %s, interleaved=false)\nCHECK-NEXT: return %0")
    assert made.rewrites == 1
    assert made.again() == 0


def test_fuses_halves_that_are_split(rewrite):
    made = rewrite(FuseRope(), TOKENS_FIRST + CHUNKED).agrees()
    made.check("CHECK: %0: f32[T, 3, 8] = optpipe.rope(%x, %c, %s, interleaved=false)\nCHECK-NEXT: return %0")


def test_fuses_neighbours(rewrite):
    made = rewrite(FuseRope(), TOKENS_FIRST + NEIGHBOURS).agrees(1, 9)
    made.check("CHECK: %0: f32[T, 3, 8] = optpipe.rope(%x, %c, %s, interleaved=true)\nCHECK-NEXT: return %0")
    assert made.again() == 0


def test_fuses_each_half_by_itself_over_tables_of_half_the_width(rewrite):
    made = rewrite(FuseRope(), BY_HALVES).agrees(1, 9)
    made.check("CHECK: optpipe.rope(%x, {{%.*}}, {{%.*}}, interleaved=false)\nCHECK-NEXT: return")
    assert made.again() == 0


def test_fuses_pairs_that_were_complex_numbers(rewrite):
    made = rewrite(FuseRope(), BY_PAIRS).agrees(1, 9)
    made.check(
        """
        CHECK: [[C2:%.*]]: f32[T, 4, 2] = aten.stack([%c, %c], -1)
        CHECK: [[COS:%.*]]: f32[T, 8] = aten.reshape([[C2]], [T, 8])
        CHECK: f32[T, 3, 8] = optpipe.rope({{.*}}, [[COS]], {{.*}}, interleaved=true)
        CHECK-NEXT: return
        """
    )
    assert made.rewrites == 1
    assert made.again() == 0


def test_heads_that_come_first_are_moved_behind_the_tokens(rewrite):
    text = (TOKENS_FIRST + HALVES).replace("[T, 3,", "[3, T,").replace("[T, 1, 8]", "[1, T, 8]")
    made = rewrite(FuseRope(), text).agrees(1, 9)
    made.check("""
        CHECK: [[P:%.*]]: f32[T, 3, 8] = aten.permute(%x, [1, 0, 2])
        CHECK-NEXT: [[R:%.*]]: f32[T, 3, 8] = optpipe.rope([[P]], %c, %s, interleaved=false)
        CHECK-NEXT: aten.permute([[R]], [1, 0, 2])
    """)
    assert made.again() == 0


def test_tables_without_a_dimension_for_heads_mean_heads_first(rewrite):
    text = (TOKENS_FIRST + HALVES).replace("[T, 3,", "[3, T,").replace("%cos)", "%c)").replace("%sin)", "%s)")
    made = rewrite(FuseRope(), text).agrees(1, 9)
    made.check("CHECK: optpipe.rope({{%.*}}, %c, %s")


@pytest.mark.parametrize("turned", [HALVES, NEIGHBOURS], ids=["halves", "neighbours"])
def test_channels_that_pass_through_are_taken_along(rewrite, turned):
    text = SLICED + turned.replace("return %7", JOINED)
    made = rewrite(FuseRope(), text).agrees(1, 9)
    made.check("CHECK: %0: f32[T, 3, 20] = optpipe.rope(%w, %c, %s\nCHECK-NEXT: return %0")
    assert made.again() == 0


def test_a_turned_part_with_another_user_is_fused_by_itself(rewrite):
    both = JOINED.replace("return %8", "%9: f32[T, 3, 8] = aten.tanh(%7)\n    return %8, %9")
    text = SLICED + HALVES.replace("return %7", both)
    made = rewrite(FuseRope(), text).agrees()
    made.check("CHECK: f32[T, 3, 8] = optpipe.rope(%0")
    assert made.rewrites == 1


def unchanged(made, reason=None):
    assert "optpipe.rope" not in made.text
    assert made.rewrites == 0
    assert made.missed == ([] if reason is None else [reason])


def test_four_dimensions_are_left(rewrite):
    text = (TOKENS_FIRST + HALVES).replace("[T, 3,", "[2, T, 3,").replace("%c, [T", "%c, [T")
    unchanged(rewrite(FuseRope(), text), "what it turns has 4 dimensions, not heads, tokens and channels")


def test_tables_that_differ_by_head_are_left(rewrite):
    text = (
        (TOKENS_FIRST + HALVES).replace("[T, 1, 8]", "[T, 3, 8]").replace("%c: f32[T, 8]", "%c: f32[T, 24]")
    )
    unchanged(
        rewrite(FuseRope(), text.replace("%s: f32[T, 8]", "%s: f32[T, 24]")),
        "cos and sin are not one row a token",
    )


def test_tables_that_are_equal_for_all_tokens_are_left(rewrite):
    text = (TOKENS_FIRST + HALVES).replace("[T, 1, 8]", "[1, 1, 8]").replace(": f32[T, 8]", ": f32[8]")
    unchanged(rewrite(FuseRope(), text), "cos and sin are not one row a token")


def test_tables_with_one_number_a_head_are_left(rewrite):
    """[T, H, 1] has as many dimensions as a table; its numbers are not channels."""
    text = (TOKENS_FIRST + HALVES).replace("[T, 1, 8]", "[T, 3, 1]").replace("f32[T, 8]", "f32[T, 3]")
    unchanged(rewrite(FuseRope(), text), "cos and sin are not one row a token")


def test_halves_in_the_wrong_order_are_left(rewrite):
    unchanged(rewrite(FuseRope(), TOKENS_FIRST + HALVES.replace("[%4, %2]", "[%2, %4]")))


def test_halves_without_the_sign_are_left(rewrite):
    unchanged(rewrite(FuseRope(), TOKENS_FIRST + HALVES.replace("[%4, %2]", "[%3, %2]")))


def test_halves_that_are_not_halves_are_left(rewrite):
    text = HALVES.replace("-1, 0, 4)", "-1, 0, 2)").replace("-1, 4, 9", "-1, 2, 9")
    text = text.replace("%2: f32[T, 3, 4]", "%2: f32[T, 3, 2]").replace(
        "%3: f32[T, 3, 4]", "%3: f32[T, 3, 6]"
    )
    unchanged(rewrite(FuseRope(), TOKENS_FIRST + text.replace("%4: f32[T, 3, 4]", "%4: f32[T, 3, 6]")))


def test_the_halves_of_another_tensor_are_left(rewrite):
    text = (
        "input %y: f32[T, 3, 8]"
        + TOKENS_FIRST
        + HALVES.replace("slice.Tensor(%x, -1, 4", "slice.Tensor(%y, -1, 4")
    )
    unchanged(rewrite(FuseRope(), text))


def test_neighbours_stacked_along_another_dimension_are_left(rewrite):
    """stack(…, −2) puts the odd channels before the even ones: neither kind of rotation."""
    text = NEIGHBOURS.replace(
        "%5: f32[T, 3, 4, 2] = aten.stack([%4, %2], -1)", "%5: f32[T, 3, 2, 4] = aten.stack([%4, %2], -2)"
    )
    unchanged(rewrite(FuseRope(), TOKENS_FIRST + text))


def test_a_difference_in_place_of_the_sum_is_left(rewrite):
    unchanged(rewrite(FuseRope(), TOKENS_FIRST + HALVES.replace("aten.add.Tensor(%1", "aten.sub.Tensor(%1")))


def test_both_halves_by_themselves_with_the_wrong_sign_are_left(rewrite):
    text = BY_HALVES.replace("aten.sub.Tensor(%3, %4)", "aten.sub.Tensor(%4, %3)")
    unchanged(rewrite(FuseRope(), text))


NOT_PAIRS = {
    "one element twice": ("aten.select.int(%x, -1, 1)", "aten.select.int(%x, -1, 0)"),
    "another sign": ("aten.add.Tensor(%6, %7)", "aten.sub.Tensor(%6, %7)"),
    "cos for sin": ("aten.mul.Tensor(%1, %sin)", "aten.mul.Tensor(%1, %cos)"),
    "put back in another order": ("aten.stack([%5, %8], -1)", "aten.stack([%8, %5], -1)"),
    "put back as halves": (
        "%9: f32[T, 3, 4, 2] = aten.stack([%5, %8], -1)",
        "%9: f32[T, 3, 2, 4] = aten.stack([%5, %8], 2)",
    ),
}


@pytest.mark.parametrize(("line", "other"), NOT_PAIRS.values(), ids=NOT_PAIRS)
def test_what_only_looks_like_pairs_is_left(rewrite, line, other):
    assert line in BY_PAIRS
    unchanged(rewrite(FuseRope(), BY_PAIRS.replace(line, other)))
