"""``drop-batch``: every rule of its tables, and operations that are in none."""

import pytest

from optpipe_passes.drop_batch import DropBatch

HEAD = """
    input %input_ids: i64[1, T]
    input %position_ids: i64[1, T]
    weight @table: f32[5, 8] stored bf16
    weight @w: f32[6, 8] stored bf16
    %x: f32[1, T, 8] = aten.embedding(@table, %input_ids)
"""
SPLIT = "%2: f32[1, T, 2, 4] = aten.view(%x, [1, T, 2, 4])\n"
# what each rule does: lines over %x: f32[1, T, 8], and what the result looks like without the batch dimension
RULES = {
    "linear": ("%1: f32[1, T, 6] = aten.linear(%x, @w)", "f32[T, 6] = aten.linear(%0, @w)"),
    "pointwise": ("%1: f32[1, T, 8] = aten.tanh(%x)", "f32[T, 8] = aten.tanh(%0)"),
    "cast": ("%1: f64[1, T, 8] = aten.to.dtype(%x, f64)", "f64[T, 8] = aten.to.dtype(%0, f64)"),
    "softmax": ("%1: f32[1, T, 8] = aten.softmax.int(%x, -1)", "f32[T, 8] = aten.softmax.int(%0, 1)"),
    "sum over tokens": (
        "%1: f32[1, 8] = aten.sum.dim_IntList(%x, [1])",
        "f32[8] = aten.sum.dim_IntList(%0, [0])",
    ),
    "mean": ("%1: f32[1, T, 1] = aten.mean.dim(%x, [-1], true)", "f32[T, 1] = aten.mean.dim(%0, [1], true)"),
    "slice": (
        "%1: f32[1, T, 3] = aten.slice.Tensor(%x, 2, 0, 3)",
        "f32[T, 3] = aten.slice.Tensor(%0, 1, 0, 3)",
    ),
    "select": ("%1: f32[1, T] = aten.select.int(%x, -1, 2)", "f32[T] = aten.select.int(%0, 1, 2)"),
    "cat": ("%1: f32[1, T, 16] = aten.cat([%x, %x], -1)", "f32[T, 16] = aten.cat([%0, %0], 1)"),
    "stack": ("%1: f32[1, T, 8, 2] = aten.stack([%x, %x], -1)", "f32[T, 8, 2] = aten.stack([%0, %0], 2)"),
    "cumsum": ("%1: f32[1, T, 8] = aten.cumsum(%x, 1)", "f32[T, 8] = aten.cumsum(%0, 0)"),
    "transpose": (
        SPLIT + "%1: f32[1, 2, T, 4] = aten.transpose.int(%2, 2, 1)",
        "f32[2, T, 4] = aten.permute(%1, [1, 0, 2])",
    ),
    "expand": (
        "%2: f32[1, T, 1, 8] = aten.unsqueeze(%x, 2)\n%1: f32[1, T, 3, 8] = aten.expand(%2, [1, T, 3, 8])",
        "f32[T, 3, 8] = aten.expand(%1, [T, 3, 8])",
    ),
    "product of two sequences": (
        "%2: f32[1, 8, T] = aten.transpose.int(%x, 1, 2)\n    %1: f32[1, T, T] = aten.bmm(%x, %2)",
        "f32[T, T] = aten.mm(%0, %1)",
    ),
}


@pytest.mark.parametrize(("lines", "expected"), RULES.values(), ids=RULES)
def test_the_rule_moves_every_dimension_by_one(rewrite, lines, expected):
    made = rewrite(DropBatch(), HEAD + f"    {lines}\n    return %1").agrees(1, 9)
    made.check(f"CHECK: input %input_ids: i64[T]\nCHECK: {expected}")
    assert made.again() == 0


def test_the_output_loses_the_dimension_too(rewrite):
    made = rewrite(DropBatch(), HEAD + "return %x").agrees()
    made.check("CHECK: %0: f32[T, 8] = aten.embedding(@table, %input_ids)\nCHECK-NEXT: return %0")


def test_several_results_lose_it_each(rewrite):
    text = (
        HEAD
        + """
        %1: f32[1, T, 2], %2: f32[1, T, 6] = aten.split_with_sizes(%x, [2, 6], -1)
        %3: f32[1, T, 8] = aten.cat([%2, %1], -1)
        return %3
    """
    )
    made = rewrite(DropBatch(), text).agrees(1, 9)
    made.check("CHECK: %1: f32[T, 2], %2: f32[T, 6] = aten.split_with_sizes(%0, [2, 6], 1)\nCHECK: return")


# operations that the tables do not name, or name but not in this use
KEPT = {
    "an operation in no table": "%1: f32[1, T, 8] = aten.roll(%x, [1], [2])",
    "a softmax over the batch": "%1: f32[1, T, 8] = aten.softmax.int(%x, 0)",
    "a sum over the batch": "%1: f32[1, T, 8] = aten.sum.dim_IntList(%x, [0], true)",
    "a cat along the batch": "%1: f32[2, T, 8] = aten.cat([%x, %x], 0)",
    "a copy of the batch": "%1: f32[3, T, 8] = aten.expand(%x, [3, T, 8])",
    "a sum of everything": "%1: f32[] = aten.sum(%x)",
}


@pytest.mark.parametrize("line", KEPT.values(), ids=KEPT)
def test_what_the_tables_do_not_know_keeps_its_batch_and_its_numbers(rewrite, line):
    """It reads its operands through a reshape."""
    name = line.split(" = ")[1].split("(")[0]
    made = rewrite(DropBatch(), HEAD + f"    {line}\n    return %1").agrees(1, 9)
    made.check(f"CHECK: [[X:%.*]]: f32[1, T, 8] = aten.reshape(%0, [1, T, 8])\nCHECK-NEXT: {name}(")
    assert made.again() == 0


def test_after_an_unknown_operation_the_rest_loses_its_batch_again(rewrite):
    text = HEAD + KEPT["an operation in no table"] + "\n%2: f32[1, T, 6] = aten.linear(%1, @w)\nreturn %2"
    made = rewrite(DropBatch(), text).agrees(1, 9)
    made.check("CHECK: f32[1, T, 8] = aten.roll\nCHECK: f32[T, 6] = aten.linear")


def test_what_comes_out_of_a_stack_of_batches_loses_it_again(rewrite):
    """Gemma 3n holds its residual streams as [4, 1, T, K]: the batch stands inside."""
    text = (
        HEAD
        + """
        %1: f32[2, 1, T, 8] = aten.stack([%x, %x], 0)
        %2: f32[2, 1, T, 8] = aten.tanh(%1)
        %3: f32[1, T, 8] = aten.mean.dim(%2, [0])
        %4: f32[1, T, 6] = aten.linear(%3, @w)
        return %4
    """
    )
    made = rewrite(DropBatch(), text).agrees(1, 9)
    made.check(
        "CHECK: f32[2, 1, T, 8] = aten.tanh\nCHECK: [[Y:%.*]]: f32[T, 6] = aten.linear\nCHECK: return [[Y]]"
    )
    assert made.again() == 0


def test_an_operand_of_another_rank_is_lined_up_from_the_right(rewrite):
    text = (
        HEAD
        + """
        %1: f32[1, T, 1] = aten.mean.dim(%x, [-1], true)
        %2: f32[1, T, 8] = aten.sub.Tensor(%x, %1)
        %3: f32[8] = aten.full([8], 2.0)
        %4: f32[1, T, 8] = aten.mul.Tensor(%2, %3)
        return %4
    """
    )
    rewrite(DropBatch(), text).agrees(1, 9).check(
        "CHECK: f32[T, 8] = aten.sub.Tensor\nCHECK: f32[T, 8] = aten.mul"
    )


def test_a_batched_operand_of_a_lower_rank_is_not_moved(rewrite):
    """[1, T] against [1, T, 8]-like operands lines the batch up with the tokens: it has to stay."""
    text = (
        HEAD
        + """
        %1: f32[1, T] = aten.select.int(%x, -1, 0)
        %2: f32[1, T, 1] = aten.unsqueeze(%1, -1)
        %3: f32[1, T, T] = aten.mul.Tensor(%2, %1)
        return %3
    """
    )
    rewrite(DropBatch(), text).agrees(1, 9)


def test_an_unbatched_operand_of_full_rank_is_squeezed(rewrite):
    text = (
        HEAD
        + """
        %1: f32[1, 1, 8] = aten.full([1, 1, 8], 3.0)
        %2: f32[1, T, 8] = aten.mul.Tensor(%x, %1)
        return %2
    """
    )
    rewrite(DropBatch(), text).agrees(1, 9).check("CHECK: f32[T, 8] = aten.mul.Tensor")


def test_a_reshape_that_flattens_the_batch_away_works_as_it_is(rewrite):
    text = HEAD + "%1: f32[T, 8] = aten.view(%x, [T, 8])\n%2: f32[T, 6] = aten.linear(%1, @w)\nreturn %2"
    made = rewrite(DropBatch(), text).agrees(1, 9)
    made.check("CHECK: %0: f32[T, 8] = aten.embedding\nCHECK-NEXT: %1: f32[T, 6] = aten.linear(%0, @w)")


def test_a_graph_without_a_batch_is_left(rewrite):
    inputs = "input %input_ids: i64[T]\ninput %position_ids: i64[T]\n"
    text = inputs + "%1: i64[T] = aten.add.Tensor(%input_ids, 1)\nreturn %1"
    assert rewrite(DropBatch(), text).rewrites == 0
