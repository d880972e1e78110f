"""``fuse-rms-norm``: every spelling, and what only looks like one."""

import pytest

from optpipe_passes.fuse_rms_norm import FuseRmsNorm

HEAD = """
    input %x: f32[T, 8]
    weight @w: f32[8] stored bf16
"""
MEAN = """
    %1: f32[T, 8] = aten.pow.Tensor_Scalar(%x, 2)
    %2: f32[T, 1] = aten.mean.dim(%1, [-1], true)
    %3: f32[T, 1] = aten.add.Tensor(%2, 1e-06)
"""
NORM = HEAD + MEAN + "%4: f32[T, 1] = aten.rsqrt(%3)\n%5: f32[T, 8] = aten.mul.Tensor(%x, %4)\n"
SCALED = NORM + "%6: f32[T, 8] = aten.mul.Tensor(@w, %5)\nreturn %6"

SPELLINGS = {
    "rsqrt": SCALED,
    "weight on the right": NORM + "%6: f32[T, 8] = aten.mul.Tensor(%5, @w)\nreturn %6",
    "power of minus a half": SCALED.replace("aten.rsqrt(%3)", "aten.pow.Tensor_Scalar(%3, -0.5)"),
    "root and quotient": SCALED.replace("aten.rsqrt(%3)", "aten.sqrt(%3)").replace(
        "mul.Tensor(%x", "div.Tensor(%x"
    ),
    "product with itself": SCALED.replace("aten.pow.Tensor_Scalar(%x, 2)", "aten.mul.Tensor(%x, %x)"),
    "square": SCALED.replace("aten.pow.Tensor_Scalar(%x, 2)", "aten.square(%x)"),
    "last dimension by number": SCALED.replace("[-1]", "[1]"),
    "epsilon as a scalar": SCALED.replace("aten.add.Tensor(%2", "aten.add.Scalar(%2"),
}


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_fuses_the_norm_and_its_weight(rewrite, text):
    made = rewrite(FuseRmsNorm(), text).agrees()
    made.check("""
        CHECK: %0: f32[T, 8] = optpipe.rms_norm(%x, @w, eps=1e-06, unit_offset=false)
        CHECK-NEXT: return %0
    """)
    assert made.rewrites == 1
    assert made.again() == 0


def test_one_plus_the_weight_is_a_unit_offset(rewrite):
    offset = (
        NORM + "%6: f32[8] = aten.add.Tensor(@w, 1.0)\n%7: f32[T, 8] = aten.mul.Tensor(%5, %6)\nreturn %7"
    )
    made = rewrite(FuseRmsNorm(), offset).agrees()
    made.check(
        "CHECK: %0: f32[T, 8] = optpipe.rms_norm(%x, @w, eps=1e-06, unit_offset=true)\nCHECK-NEXT: return"
    )
    assert made.again() == 0


def test_two_plus_the_weight_stays_outside(rewrite):
    offset = (
        NORM + "%6: f32[8] = aten.add.Tensor(@w, 2.0)\n%7: f32[T, 8] = aten.mul.Tensor(%5, %6)\nreturn %7"
    )
    made = rewrite(FuseRmsNorm(), offset).agrees()
    made.check("CHECK: optpipe.rms_norm(%x, None\nCHECK: aten.mul")


def test_a_norm_without_a_weight_is_one(rewrite):
    made = rewrite(FuseRmsNorm(), NORM + "return %5").agrees()
    made.check("CHECK: optpipe.rms_norm(%x, None, eps=1e-06, unit_offset=false)\nCHECK-NEXT: return")


def test_torchs_own_norm_without_a_weight_is_one(rewrite):
    text = HEAD + "%1: f32[T, 8] = aten.rms_norm(%x, [8])\nreturn %1"
    made = rewrite(FuseRmsNorm(), text).agrees()
    made.check("CHECK: optpipe.rms_norm(%x, None, eps=1.1920928955078125e-07")


def test_torchs_own_norm_takes_its_weight_along(rewrite):
    text = HEAD + "%1: f32[T, 8] = aten.rms_norm(%x, [8], @w, 0.001)\nreturn %1"
    made = rewrite(FuseRmsNorm(), text).agrees()
    made.check("CHECK: optpipe.rms_norm(%x, @w, eps=0.001, unit_offset=false)\nCHECK-NEXT: return")
    assert made.again() == 0


def test_a_scale_by_head_stays_outside(rewrite):
    text = """
        input %x: f32[T, 3, 8]
        weight @w: f32[3, 8] stored f32
        %1: f32[T, 3, 8] = aten.pow.Tensor_Scalar(%x, 2)
        %2: f32[T, 3, 1] = aten.mean.dim(%1, [-1], true)
        %3: f32[T, 3, 1] = aten.add.Tensor(%2, 1e-06)
        %4: f32[T, 3, 1] = aten.rsqrt(%3)
        %5: f32[T, 3, 8] = aten.mul.Tensor(%x, %4)
        %6: f32[T, 3, 8] = aten.mul.Tensor(%5, @w)
        return %6
    """
    made = rewrite(FuseRmsNorm(), text).agrees()
    made.check(
        "CHECK: [[N:%.*]]: f32[T, 3, 8] = optpipe.rms_norm(%x, None\nCHECK-NEXT: aten.mul.Tensor([[N]], @w)"
    )


def test_a_scale_that_is_computed_stays_outside(rewrite):
    text = HEAD + "input %s: f32[8]\n" + SCALED[len(HEAD) :].replace("@w, %5", "%5, %s")
    text = text.replace("weight @w: f32[8] stored bf16\n", "")
    made = rewrite(FuseRmsNorm(), text).agrees()
    made.check("CHECK: optpipe.rms_norm(%x, None\nCHECK: aten.mul.Tensor(%0, %s)")


def test_a_norm_with_two_users_keeps_its_weight_outside(rewrite):
    text = (
        NORM + "%6: f32[T, 8] = aten.mul.Tensor(%5, @w)\n%7: f32[T, 8] = aten.add.Tensor(%6, %5)\nreturn %7"
    )
    made = rewrite(FuseRmsNorm(), text).agrees()
    made.check("CHECK: optpipe.rms_norm(%x, None")


def no_norm(made):
    made.check("CHECK: return\nCHECK-NOT: optpipe.rms_norm")
    assert "optpipe" not in made.text.split("\n", 1)[1]
    assert made.rewrites == 0


def test_a_mean_over_tokens_is_no_norm(rewrite):
    no_norm(rewrite(FuseRmsNorm(), SCALED.replace("[-1]", "[0]").replace("f32[T, 1]", "f32[1, 8]")))


def test_the_mean_of_another_tensor_is_no_norm(rewrite):
    text = "input %y: f32[T, 8]\n" + SCALED.replace("Tensor_Scalar(%x", "Tensor_Scalar(%y")
    no_norm(rewrite(FuseRmsNorm(), text))


def test_a_mean_of_cubes_is_no_norm(rewrite):
    no_norm(rewrite(FuseRmsNorm(), SCALED.replace("(%x, 2)", "(%x, 3)")))


def test_a_mean_over_two_dimensions_is_no_norm(rewrite):
    text = SCALED.replace("[-1]", "[0, 1]").replace("f32[T, 1]", "f32[1, 1]")
    no_norm(rewrite(FuseRmsNorm(), text))


def test_the_power_of_minus_one_is_no_norm(rewrite):
    no_norm(rewrite(FuseRmsNorm(), SPELLINGS["power of minus a half"].replace("-0.5", "-1.0")))
