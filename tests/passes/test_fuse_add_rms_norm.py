"""``fuse-add-rms-norm``: a sum and its norm."""

from optpipe_passes.fuse_add_rms_norm import FuseAddRmsNorm

HEAD = """
    input %x: f32[T, 8]
    input %r: f32[T, 8]
    weight @w: f32[8] stored bf16
    weight @v: f32[8] stored bf16
"""
FUSABLE = (
    HEAD
    + """
    %1: f32[T, 8] = aten.add.Tensor(%r, %x)
    %2: f32[T, 8] = optpipe.rms_norm(%1, @w, eps=1e-05, unit_offset=true)
"""
)


def test_fuses_a_sum_that_only_the_norm_uses(rewrite):
    made = rewrite(FuseAddRmsNorm(), FUSABLE + "return %2").agrees(within="exact")
    made.check("""
        CHECK: %0: f32[T, 8], %1: f32[T, 8] = optpipe.add_rms_norm(%r, %x, @w, eps=1e-05, unit_offset=true)
        CHECK-NEXT: return %0
    """)
    assert made.rewrites == 1
    assert made.again() == 0


def test_fuses_when_the_sum_has_two_users(rewrite):
    text = FUSABLE + "%3: f32[T, 8] = aten.add.Tensor(%1, %2)\nreturn %3"
    made = rewrite(FuseAddRmsNorm(), text).agrees(within="exact")
    made.check("""
        CHECK: [[Y:%.*]]: f32[T, 8], [[S:%.*]]: f32[T, 8] = optpipe.add_rms_norm
        CHECK-NEXT: aten.add.Tensor([[S]], [[Y]])
    """)
    assert made.again() == 0


def test_fuses_when_the_sum_is_used_before_the_norm(rewrite):
    text = (
        HEAD
        + """
        %1: f32[T, 8] = aten.add.Tensor(%r, %x)
        %2: f32[T, 8] = aten.tanh(%1)
        %3: f32[T, 8] = optpipe.rms_norm(%1, @w, eps=1e-05)
        %4: f32[T, 8] = aten.add.Tensor(%2, %3)
        return %4
    """
    )
    assert rewrite(FuseAddRmsNorm(), text).agrees(within="exact").rewrites == 1


def test_the_stream_of_a_chain_is_the_operand_that_is_older(rewrite):
    text = (
        HEAD
        + """
        %1: f32[T, 8] = aten.add.Tensor(%r, %x)
        %2: f32[T, 8] = optpipe.rms_norm(%1, @w, eps=1e-05)
        %3: f32[T, 8] = aten.tanh(%2)
        %4: f32[T, 8] = aten.add.Tensor(%3, %1)
        %5: f32[T, 8] = optpipe.rms_norm(%4, @v, eps=1e-05)
        return %5
    """
    )
    made = rewrite(FuseAddRmsNorm(), text).agrees(within="exact")
    made.check("""
        CHECK: [[Y:%.*]]: f32[T, 8], [[S:%.*]]: f32[T, 8] = optpipe.add_rms_norm
        CHECK: [[B:%.*]]: f32[T, 8] = aten.tanh([[Y]])
        CHECK: optpipe.add_rms_norm([[B]], [[S]], @v
    """)
    assert made.rewrites == 2


def test_of_two_norms_of_one_sum_the_first_is_fused(rewrite):
    text = (
        FUSABLE
        + """
        %3: f32[T, 8] = optpipe.rms_norm(%1, @v, eps=1e-05)
        %4: f32[T, 8] = aten.mul.Tensor(%2, %3)
        return %4
    """
    )
    made = rewrite(FuseAddRmsNorm(), text).agrees(within="exact")
    made.check("CHECK: optpipe.add_rms_norm(%r, %x, @w\nCHECK-NEXT: optpipe.rms_norm(%1, @v")
    assert made.rewrites == 1
    assert made.missed == ["what it norms is not a sum"]
    assert made.again() == 0


def test_an_operand_that_is_broadcast_is_left(rewrite):
    text = FUSABLE.replace("input %x: f32[T, 8]", "input %x: f32[8]") + "return %2"
    made = rewrite(FuseAddRmsNorm(), text)
    made.check("CHECK: aten.add.Tensor(%r, %x)\nCHECK-NEXT: optpipe.rms_norm")
    assert made.missed == ["the operands of the sum are broadcast or scaled"]


def test_a_scaled_sum_is_left(rewrite):
    text = FUSABLE.replace("(%r, %x)", "(%r, %x, alpha=2)") + "return %2"
    made = rewrite(FuseAddRmsNorm(), text)
    assert made.missed == ["the operands of the sum are broadcast or scaled"]
    assert made.rewrites == 0


def test_a_sum_with_a_number_is_left(rewrite):
    made = rewrite(FuseAddRmsNorm(), FUSABLE.replace("(%r, %x)", "(%r, 1.5)") + "return %2")
    assert made.missed == ["the operands of the sum are broadcast or scaled"]


def test_a_weight_that_is_worked_out_after_the_sum_is_left(rewrite):
    text = FUSABLE.replace("%2: f32", "%3: f32[8] = aten.mean.dim(%1, [0])\n    %2: f32").replace(
        "(%1, @w", "(%1, %3"
    )
    made = rewrite(FuseAddRmsNorm(), text.replace("weight @w: f32[8] stored bf16", "") + "return %2").agrees()
    assert made.missed == ["its weight is worked out after the sum"]
    assert made.rewrites == 0


def test_the_norm_of_something_else_is_left(rewrite):
    made = rewrite(FuseAddRmsNorm(), FUSABLE.replace("aten.add", "aten.mul") + "return %2")
    assert made.missed == ["what it norms is not a sum"]
    assert made.rewrites == 0
