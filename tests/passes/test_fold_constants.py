"""``fold-constants``: constants alone, of a size, and never a weight."""

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from optpipe_passes.fold_constants import LIMIT_BYTES, FoldConstants, is_constant

HEAD = """
    input %x: f32[T, 8]
    weight @inv_freq: f32[8] stored f32
"""


def test_what_depends_on_constants_alone_is_worked_out(rewrite):
    text = (
        HEAD
        + """
        %1: f32[8] = aten.full([8], 0.5)
        %2: f32[8] = aten.mul.Tensor(@inv_freq, %1)
        %3: f32[8] = aten.cos(%2)
        %4: f32[T, 8] = aten.mul.Tensor(%x, %3)
        return %4
    """
    )
    inv_freq = torch.linspace(0.1, 1, 8)
    made = rewrite(FoldConstants(), text, constants=("inv_freq",), weights={"inv_freq": inv_freq})
    made.agrees(within="exact").check(
        "CHECK: %0: f32[T, 8] = aten.mul.Tensor(%x, @constants.0)\nCHECK-NEXT: return %0"
    )
    assert made.weights["constants.0"].load().equal((inv_freq * 0.5).cos())
    assert "inv_freq" not in made.text
    assert made.constants == {"inv_freq", "constants.0"}
    assert made.rewrites == 1
    assert made.again() == 0


def test_every_folded_value_has_a_name_of_its_own(rewrite):
    text = (
        HEAD.replace("    weight @inv_freq: f32[8] stored f32\n", "")
        + """
        %1: f32[8] = aten.full([8], 2.0)
        %2: f32[8] = aten.full([8], 3.0)
        %3: f32[T, 8] = aten.mul.Tensor(%x, %1)
        %4: f32[T, 8] = aten.add.Tensor(%3, %2)
        return %4
    """
    )
    made = rewrite(FoldConstants(), text).agrees(within="exact")
    made.check("CHECK: aten.mul.Tensor(%x, @constants.0)\nCHECK-NEXT: aten.add.Tensor(%0, @constants.1)")
    assert made.again() == 0


def test_a_value_that_is_used_inside_and_outside_is_folded_for_both(rewrite):
    text = (
        HEAD
        + """
        %1: f32[8] = aten.cos(@inv_freq)
        %2: f32[8] = aten.sin(%1)
        %3: f32[T, 8] = aten.mul.Tensor(%x, %1)
        %4: f32[T, 8] = aten.add.Tensor(%3, %2)
        return %4
    """
    )
    made = rewrite(FoldConstants(), text, constants=("inv_freq",)).agrees(within="exact")
    made.check("CHECK: aten.mul.Tensor(%x, @constants.0)\nCHECK-NEXT: aten.add.Tensor(%0, @constants.1)")
    assert made.again() == 0


def test_a_weight_of_the_checkpoint_is_never_folded(rewrite):
    text = (
        HEAD
        + "%1: f32[8] = aten.add.Tensor(@inv_freq, 1.0)\n%2: f32[T, 8] = aten.mul.Tensor(%x, %1)\nreturn %2"
    )
    made = rewrite(FoldConstants(), text)
    made.check("CHECK: aten.add.Tensor(@inv_freq, 1.0)")
    assert made.rewrites == 0


def test_what_depends_on_an_input_is_left(rewrite):
    text = (
        HEAD.replace("    weight @inv_freq: f32[8] stored f32\n", "")
        + "%1: f32[T, 8] = aten.cos(%x)\nreturn %1"
    )
    assert rewrite(FoldConstants(), text).rewrites == 0


def test_what_has_a_symbolic_size_is_left(rewrite):
    ones = "input %x: f32[T, 8]\n%1: f32[T, 8] = aten.full([T, 8], 1.0)\n"
    text = ones + "%2: f32[T, 8] = aten.mul.Tensor(%x, %1)\nreturn %2"
    made = rewrite(FoldConstants(), text).agrees(1, 9)
    assert made.rewrites == 0


def test_a_result_over_the_limit_is_left_and_one_at_it_is_folded(rewrite):
    rows = LIMIT_BYTES // 4 // 1024
    text = """
        input %x: f32[T, 1024]
        %1: f32[{rows}, 1024] = aten.full([{rows}, 1024], 1.0)
        %2: f32[T, {rows}] = aten.linear(%x, %1)
        return %2
    """
    assert rewrite(FoldConstants(), text.format(rows=rows)).rewrites == 1
    assert rewrite(FoldConstants(), text.format(rows=rows + 1)).rewrites == 0


def test_something_small_made_of_something_large_is_left(rewrite):
    """The large value would have to be worked out first."""
    text = """
        input %x: f32[T, 8]
        %1: f32[8, 1000000] = aten.full([8, 1000000], 1.0)
        %2: f32[8] = aten.sum.dim_IntList(%1, [1])
        %3: f32[T, 8] = aten.mul.Tensor(%x, %2)
        return %3
    """
    assert rewrite(FoldConstants(), text).rewrites == 0


@pytest.mark.parametrize(
    ("target", "known"), [(torch.ops.aten.rand.default, False), (torch.ops.aten.ones.default, True)]
)
def test_what_draws_random_numbers_is_never_folded(target, known):
    node = fx.Graph().call_function(target, ([4],))
    with FakeTensorMode():
        node.meta["val"] = torch.empty(4)
    assert is_constant(node, {}) is known


def test_a_dialect_operation_is_folded_by_its_body(rewrite):
    text = (
        HEAD
        + "%1: f32[8] = optpipe.rms_norm(@inv_freq, None, eps=0.1)\n"
        + "%2: f32[T, 8] = aten.mul.Tensor(%x, %1)\nreturn %2"
    )
    made = rewrite(FoldConstants(), text, constants=("inv_freq",)).agrees(within="exact")
    assert made.rewrites == 1
