"""``fuse-gated-act``: an activated gate times the other half."""

import pytest

from optpipe_passes.fuse_gated_act import FuseGatedAct

HEAD = """
    input %g: f32[T, 8]
    input %u: f32[T, 8]
"""
PRODUCT = "%9: f32[T, 8] = aten.mul.Tensor(%1, %u)\nreturn %9"
SPELLINGS = {
    "silu": ("silu", "%1: f32[T, 8] = aten.silu(%g)\n"),
    "gelu": ("gelu", "%1: f32[T, 8] = aten.gelu(%g)\n"),
    "gelu none": ("gelu", '%1: f32[T, 8] = aten.gelu(%g, approximate="none")\n'),
    "gelu tanh": ("gelu_tanh", '%1: f32[T, 8] = aten.gelu(%g, approximate="tanh")\n'),
    "relu": ("relu", "%1: f32[T, 8] = aten.relu(%g)\n"),
    "sigmoid": ("sigmoid", "%1: f32[T, 8] = aten.sigmoid(%g)\n"),
    "tanh": ("tanh", "%1: f32[T, 8] = aten.tanh(%g)\n"),
    "silu spelled out": (
        "silu",
        "%0: f32[T, 8] = aten.sigmoid(%g)\n%1: f32[T, 8] = aten.mul.Tensor(%g, %0)\n",
    ),
    "relu squared": (
        "relu2",
        "%0: f32[T, 8] = aten.relu(%g)\n%1: f32[T, 8] = aten.pow.Tensor_Scalar(%0, 2)\n",
    ),
}


@pytest.mark.parametrize(("kind", "text"), SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("swapped", [False, True])
def test_fuses_every_spelling_either_way_round(rewrite, kind, text, swapped):
    product = PRODUCT.replace("(%1, %u)", "(%u, %1)") if swapped else PRODUCT
    made = rewrite(FuseGatedAct(), HEAD + text + product).agrees()
    made.check(
        f'CHECK: [[Y:%.*]]: f32[T, 8] = optpipe.gated_act(%g, %u, kind="{kind}")\nCHECK-NEXT: return [[Y]]'
    )
    assert made.rewrites == 1
    assert made.again() == 0


def test_an_activated_gate_with_another_user_is_left(rewrite):
    text = HEAD + SPELLINGS["silu"][1] + "%9: f32[T, 8] = aten.mul.Tensor(%1, %u)\n"
    made = rewrite(FuseGatedAct(), text + "%10: f32[T, 8] = aten.add.Tensor(%9, %1)\nreturn %10")
    assert made.missed == ["the activated gate has another user"]
    assert made.rewrites == 0


def test_halves_of_different_shapes_are_left(rewrite):
    text = (HEAD + SPELLINGS["sigmoid"][1] + PRODUCT).replace("input %g: f32[T, 8]", "input %g: f32[T, 1]")
    made = rewrite(FuseGatedAct(), text.replace("%1: f32[T, 8]", "%1: f32[T, 1]"))
    assert made.missed == ["the gate and the other half differ in shape"]
    assert made.rewrites == 0


def test_silu_alone_is_no_gate(rewrite):
    gate = "input %g: f32[T, 8]\n%0: f32[T, 8] = aten.sigmoid(%g)\n"
    text = gate + "%1: f32[T, 8] = aten.mul.Tensor(%g, %0)\nreturn %1"
    made = rewrite(FuseGatedAct(), text)
    assert made.rewrites == 0


def test_a_weight_is_no_other_half(rewrite):
    text = "input %g: f32[T, 8]\nweight @u: f32[8] stored f32\n" + SPELLINGS["silu"][1]
    made = rewrite(FuseGatedAct(), text + PRODUCT.replace("%u", "@u"))
    assert made.rewrites == 0


def test_an_activation_that_has_no_name_is_left(rewrite):
    made = rewrite(FuseGatedAct(), HEAD + "%1: f32[T, 8] = aten.exp(%g)\n" + PRODUCT)
    assert made.rewrites == 0


def test_two_gates_are_numbered_one_after_the_other(rewrite):
    text = (
        HEAD
        + """
        %1: f32[T, 8] = aten.silu(%g)
        %2: f32[T, 8] = aten.mul.Tensor(%1, %u)
        %3: f32[T, 8] = aten.tanh(%u)
        %4: f32[T, 8] = aten.mul.Tensor(%3, %2)
        return %4
    """
    )
    made = rewrite(FuseGatedAct(), text).agrees()
    assert [remark.text for remark in made.remarks] == ["1", "2"]
