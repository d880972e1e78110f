"""``fuse-layer-norm``: torch's own, and spelled out."""

import pytest

from optpipe_passes.fuse_layer_norm import FuseLayerNorm

HEAD = """
    input %x: f32[T, 8]
    weight @w: f32[8] stored bf16
    weight @b: f32[8] stored bf16
"""
SPELLED = (
    HEAD
    + """
    %1: f32[T, 1] = aten.mean.dim(%x, [-1], true)
    %2: f32[T, 8] = aten.sub.Tensor(%x, %1)
    %3: f32[T, 8] = aten.pow.Tensor_Scalar(%2, 2)
    %4: f32[T, 1] = aten.mean.dim(%3, [-1], true)
    %5: f32[T, 1] = aten.add.Tensor(%4, 0.001)
    %6: f32[T, 1] = aten.rsqrt(%5)
    %7: f32[T, 8] = aten.mul.Tensor(%2, %6)
"""
)
SCALED = SPELLED + "%8: f32[T, 8] = aten.mul.Tensor(@w, %7)\nreturn %8"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("@w, @b, 0.001", "@w, @b, eps=0.001"),
        ("@w", "@w, None, eps=1e-05"),
        ("None, @b", "None, @b, eps=1e-05"),
        ("None, None, 0.5", "None, None, eps=0.5"),
    ],
)
def test_fuses_torchs_own(rewrite, given, expected):
    made = rewrite(
        FuseLayerNorm(), HEAD + f"%1: f32[T, 8] = aten.layer_norm(%x, [8], {given})\nreturn %1"
    ).agrees()
    made.check(f"CHECK: %0: f32[T, 8] = optpipe.layer_norm(%x, {expected})\nCHECK-NEXT: return %0")
    assert made.rewrites == 1
    assert made.again() == 0


def test_fuses_the_spelled_out_form_with_its_weight(rewrite):
    made = rewrite(FuseLayerNorm(), SCALED).agrees()
    made.check("CHECK: %0: f32[T, 8] = optpipe.layer_norm(%x, @w, None, eps=0.001)\nCHECK-NEXT: return %0")
    assert made.again() == 0


def test_fuses_when_the_difference_is_computed_twice(rewrite):
    text = SCALED.replace(
        "%3: f32[T, 8] = aten.pow.Tensor_Scalar(%2, 2)",
        "%33: f32[T, 8] = aten.sub.Tensor(%x, %1)\n%3: f32[T, 8] = aten.pow.Tensor_Scalar(%33, 2)",
    )
    rewrite(FuseLayerNorm(), text).agrees().check(
        "CHECK: optpipe.layer_norm(%x, @w, None\nCHECK-NEXT: return"
    )


def test_without_a_weight_it_is_fused_too(rewrite):
    made = rewrite(FuseLayerNorm(), SPELLED + "return %7").agrees()
    made.check("CHECK: optpipe.layer_norm(%x, None, None, eps=0.001)\nCHECK-NEXT: return")


def test_a_weight_by_head_is_taken_along(rewrite):
    text = (
        SCALED.replace("[T, 8]", "[T, 3, 8]")
        .replace("[T, 1]", "[T, 3, 1]")
        .replace("@w: f32[8]", "@w: f32[3, 8]")
    )
    made = rewrite(FuseLayerNorm(), text).agrees()
    made.check("CHECK: %0: f32[T, 3, 8] = optpipe.layer_norm(%x, @w, None, eps=0.001)\nCHECK-NEXT: return %0")


def test_a_norm_over_two_dimensions_is_left(rewrite):
    text = """
        input %x: f32[T, 3, 8]
        %1: f32[T, 3, 8] = aten.layer_norm(%x, [3, 8])
        return %1
    """
    made = rewrite(FuseLayerNorm(), text)
    made.check("CHECK: aten.layer_norm")
    assert made.missed == ["it normalizes over more than the last dimension"]


def test_a_mean_over_tokens_is_no_layer_norm(rewrite):
    text = SCALED.replace("[-1]", "[0]").replace("f32[T, 1]", "f32[1, 8]")
    assert rewrite(FuseLayerNorm(), text).rewrites == 0


def test_the_variance_of_something_else_is_no_layer_norm(rewrite):
    text = "input %y: f32[T, 8]\n" + SCALED.replace("aten.pow.Tensor_Scalar(%2", "aten.pow.Tensor_Scalar(%y")
    assert rewrite(FuseLayerNorm(), text).rewrites == 0


def test_a_difference_from_another_mean_is_no_layer_norm(rewrite):
    text = "input %y: f32[T, 8]\n" + SCALED.replace("aten.mean.dim(%x", "aten.mean.dim(%y")
    assert rewrite(FuseLayerNorm(), text).rewrites == 0


def test_an_rms_norm_is_no_layer_norm(rewrite):
    text = SCALED.replace("aten.pow.Tensor_Scalar(%2", "aten.pow.Tensor_Scalar(%x").replace(
        "(%2, %6)", "(%x, %6)"
    )
    assert rewrite(FuseLayerNorm(), text).rewrites == 0
