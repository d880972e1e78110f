"""``clean``: one spelling, nothing twice, positions from the input."""

import pytest
import torch

from optpipe_passes.clean import Clean, merge_equal

HEAD = """
    input %input_ids: i64[T]
    input %position_ids: i64[T]
    weight @table: f32[5, 8] stored bf16
    %x: f32[T, 8] = aten.embedding(@table, %input_ids)
"""


def test_drops_what_changes_nothing(rewrite):
    text = (
        HEAD
        + """
        %1: f32[T, 8] = aten.to.dtype(%x, f32)
        %2: f32[T, 8] = aten.clone(%1)
        %3: f32[T, 8] = aten.dropout(%2, 0.5, false)
        %4: f32[T, 8] = aten.mul.Tensor(%3, 1.0)
        %5: f32[T, 8] = aten.add.Tensor(%4, 0.0)
        %6: f32[T, 8] = aten.slice.Tensor(%5, 0, 0, 9223372036854775807)
        %7: f32[T, 8] = aten.expand(%6, [T, 8])
        return %7
    """
    )
    made = rewrite(Clean(), text, tidy=False).agrees(within="exact")
    made.check("CHECK: %0: f32[T, 8] = aten.embedding(@table, %input_ids)\nCHECK-NEXT: return %0")
    assert made.again() == 0


def test_keeps_what_changes_something(rewrite):
    text = (
        HEAD
        + """
        %1: f64[T, 8] = aten.to.dtype(%x, f64)
        %2: f64[T, 8] = aten.mul.Tensor(%1, 1.5)
        %3: f64[T, 8] = aten.add.Tensor(%2, 1.0)
        %4: f64[T, 4] = aten.slice.Tensor(%3, 1, 0, 4)
        %5: f64[3, T, 4] = aten.expand(%4, [3, T, 4])
        return %5
    """
    )
    made = rewrite(Clean(), text, tidy=False).agrees(within="exact")
    made.check("""
        CHECK: aten.to.dtype
        CHECK-NEXT: aten.mul.Tensor
        CHECK-NEXT: aten.add.Tensor
        CHECK-NEXT: aten.slice.Tensor
        CHECK-NEXT: aten.expand
    """)


def test_a_chain_of_regroupings_is_one_reshape(rewrite):
    text = (
        HEAD
        + """
        %1: f32[1, T, 8] = aten.unsqueeze(%x, 0)
        %2: f32[1, T, 2, 4] = aten.view(%1, [1, T, 2, 4])
        %3: f32[T, 2, 4] = aten.squeeze.dim(%2, 0)
        %4: f32[T, 8] = aten.flatten.using_ints(%3, 1)
        %5: f32[T, 4, 2] = aten.view(%4, [T, 4, 2])
        return %5
    """
    )
    made = rewrite(Clean(), text, tidy=False).agrees(within="exact")
    made.check(
        "CHECK: embedding\nCHECK-NEXT: %1: f32[T, 4, 2] = aten.reshape(%0, [T, 4, 2])\nCHECK-NEXT: return %1"
    )


def test_a_chain_of_transposes_is_one_permute(rewrite):
    text = (
        HEAD
        + """
        %1: f32[T, 2, 4] = aten.view(%x, [T, 2, 4])
        %2: f32[2, T, 4] = aten.transpose.int(%1, 0, 1)
        %3: f32[2, 4, T] = aten.permute(%2, [0, 2, 1])
        return %3
    """
    )
    made = rewrite(Clean(), text, tidy=False).agrees(within="exact")
    made.check("CHECK: aten.reshape\nCHECK-NEXT: aten.permute(%1, [1, 2, 0])\nCHECK-NEXT: return")


def test_a_transpose_and_its_inverse_are_nothing(rewrite):
    text = HEAD + "%1: f32[8, T] = aten.t(%x)\n%2: f32[T, 8] = aten.transpose.int(%1, 0, 1)\nreturn %2"
    made = rewrite(Clean(), text, tidy=False).agrees(within="exact")
    made.check("CHECK: aten.embedding\nCHECK-NEXT: return %0")


def test_equal_calls_are_merged(rewrite):
    text = (
        HEAD
        + """
        %1: f32[T, 8] = aten.tanh(%x)
        %2: f32[T, 8] = aten.tanh(%x)
        %3: f32[T, 8] = aten.mul.Tensor(%1, 2.0)
        %4: f32[T, 8] = aten.mul.Tensor(%2, 2.0)
        %5: f32[T, 8] = aten.add.Tensor(%3, %4)
        return %5
    """
    )
    made = rewrite(Clean(), text, tidy=False).agrees(within="exact")
    made.check("""
        CHECK: aten.tanh
        CHECK-NEXT: aten.mul.Tensor
        CHECK-NEXT: aten.add.Tensor(%2, %2)
    """)
    assert made.again() == 0


@pytest.mark.parametrize(
    "other",
    [
        "aten.mul.Tensor(%x, 3.0)",
        "aten.mul.Tensor(%x, 2)",
        "aten.div.Tensor(%x, 2.0)",
        "aten.mul.Tensor(%1, 2.0)",
    ],
)
def test_calls_that_differ_in_anything_are_not_merged(rewrite, other):
    text = HEAD + f"%1: f32[T, 8] = aten.mul.Tensor(%x, 2.0)\n%2: f32[T, 8] = {other}\n"
    made = rewrite(Clean(), text + "%3: f32[T, 8] = aten.add.Tensor(%1, %2)\nreturn %3", tidy=False).agrees()
    made.check("CHECK: aten.add.Tensor(%1, %2)")


def test_integers_and_floats_of_one_value_are_not_merged(rewrite):
    text = """
        input %input_ids: i64[T]
        input %position_ids: i64[T]
        %1: i64[T] = aten.mul.Tensor(%input_ids, 2)
        %2: f32[T] = aten.mul.Tensor(%input_ids, 2.0)
        %3: f32[T] = aten.add.Tensor(%1, %2)
        return %3
    """
    rewrite(Clean(), text, tidy=False).agrees().check(
        "CHECK: aten.mul\nCHECK-NEXT: aten.mul\nCHECK-NEXT: aten.add"
    )


def test_writes_are_not_merged(rewrite):
    text = """
        input %input_ids: i64[T]
        input %position_ids: i64[T]
        cache %k_cache.0: f32[P, 4, 2, 3]
        cache %v_cache.0: f32[P, 4, 2, 3]
        input %k: f32[T, 2, 3]
        optpipe.kv_write(%k, %k, %k_cache.0, %v_cache.0, %position_ids)
        optpipe.kv_write(%k, %k, %k_cache.0, %v_cache.0, %position_ids)
        return %k
    """
    with pytest.MonkeyPatch.context() as patch:
        from optpipe.pipeline import Stage

        patch.setattr(Clean, "stage", Stage.CACHE)
        made = rewrite(Clean(), text, tidy=False)
    assert made.text.count("optpipe.kv_write") == 2


COUNTS = {
    "default": "aten.arange(T)",
    "start": "aten.arange.start(0, T)",
    "step": "aten.arange.start_step(0, T, 1)",
}


@pytest.mark.parametrize("call", COUNTS.values(), ids=COUNTS)
def test_counting_the_tokens_is_reading_the_positions(rewrite, call):
    made = rewrite(Clean(), HEAD + f"%1: i64[T] = {call}\nreturn %1", tidy=False).agrees(within="exact")
    made.check("CHECK: return %position_ids\nCHECK-NOT: aten.arange")
    assert made.again() == 0


def test_counting_in_another_dtype_is_a_cast_of_the_positions(rewrite):
    made = rewrite(Clean(), HEAD + "%1: f32[T] = aten.arange(T, dtype=f32)\nreturn %1", tidy=False)
    made.agrees(within="exact").check(
        "CHECK: %0: f32[T] = aten.to.dtype(%position_ids, f32)\nCHECK-NEXT: return %0"
    )


def test_positions_with_a_batch_dimension_are_read_too(rewrite):
    text = """
        input %input_ids: i64[1, T]
        input %position_ids: i64[1, T]
        %1: i64[T] = aten.arange(T)
        %2: i64[1, T] = aten.add.Tensor(%input_ids, %1)
        return %2
    """
    made = rewrite(Clean(), text, tidy=False).agrees(within="exact")
    made.check("CHECK: aten.reshape(%position_ids, [T])\nCHECK-NOT: aten.arange")


@pytest.mark.parametrize(
    ("call", "size"),
    [
        ("aten.arange.start(1, T + 1)", "T"),
        ("aten.arange.start_step(0, 2 * T, 2)", "T"),
        ("aten.arange(T + 1)", "T + 1"),
        ("aten.arange(8)", "8"),
    ],
)
def test_other_counts_are_left(rewrite, call, size):
    text = HEAD + f"%1: i64[{size}] = {call}\nreturn %1"
    made = rewrite(Clean(), text, tidy=False).agrees(within="exact")
    made.check("CHECK: aten.arange")


def test_a_graph_without_positions_is_cleaned_too(rewrite):
    made = rewrite(Clean(), "input %x: f32[T, 8]\n%1: f32[T, 8] = aten.clone(%x)\nreturn %1", tidy=False)
    made.check("CHECK: return %x")


def test_weights_that_are_read_twice_are_read_once(rewrite):
    gm = rewrite(Clean(), HEAD + "%1: f32[T, 8] = aten.mul.Tensor(%x, 2.0)\nreturn %1", tidy=False).after
    graph = gm.graph
    first = next(node for node in graph.nodes if node.op == "get_attr")
    user = next(iter(first.users))
    with graph.inserting_before(user):
        second = graph.get_attr("table")
    second.meta.update(first.meta)
    user.args = (second, *user.args[1:])
    merge_equal(graph)
    assert sum(node.op == "get_attr" for node in graph.nodes) == 1
    assert torch.is_tensor(user.args[0].meta["val"])
