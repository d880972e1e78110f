"""Nodes without a kernel run by torch between two parts of the plan."""

import re

import numpy as np
import pytest

from optpipe.artifact import load_artifact
from optpipe.errors import ArtifactError
from optpipe.program import parse_program, print_program
from optpipe.targets.reference_target import ReferenceTarget
from optpipe_kernels.cpu.lowering import lower
from optpipe_kernels.cpu.lowering.rules import RULES
from optpipe_kernels.cpu.pack import quantized_bytes
from optpipe_kernels.cpu.target import CpuTarget

TOKENS = np.arange(5, 45)


def rewritten(artifact, before, after):
    """The artifact's program with a line of its text written anew."""
    text = print_program(artifact.program)
    assert before in text
    return parse_program(text.replace(before, after, 1))


@pytest.fixture(scope="module")
def artifact(tiny):
    return load_artifact(tiny("llama"))


def compare(program, weights, count):
    segments = lower(program, quantized_bytes).lowered.segments
    assert len(segments) == count
    executor = CpuTarget().load(program, weights, threads=2)
    executor.profile = True
    expected = ReferenceTarget().load(program, weights).logits(TOKENS)
    for tokens in (TOKENS, TOKENS[:3]):  # other counts move the operands
        np.testing.assert_allclose(executor.logits(tokens), expected[: len(tokens)], rtol=1e-5, atol=2e-5)
    executor.close()
    return segments


def test_an_operation_without_a_rule_in_the_middle(artifact):
    line = "aten.cos(%4)"
    program = rewritten(artifact, line, "aten.cosh(%4)")
    (segment,) = compare(program, artifact.weights, 1)
    assert segment.reason == "aten.cosh has no kernel"


def test_the_last_operation(artifact):
    text = print_program(artifact.program)
    result = text.rstrip().rsplit("%", 1)[1]
    logits = f"%last: f32[R, 264] = aten.atan(%{result})\nreturn %last"
    program = rewritten(artifact, f"return %{result}", logits)
    compare(program, artifact.weights, 1)


def test_siblings_that_no_kernel_takes_together_are_run_one_by_one(tiny):
    """Groups of 16, for which there is no kernel: those of 32 are halved, the head's quartered."""
    quantized = load_artifact(tiny("llama", "quant{group=32 zero=none},paged"))
    text = re.sub(r"group=(32|-1)", "group=16", print_program(quantized.program))
    scale = re.compile(r"(@\S+_scale): f32\[(\d+), (\d+)\]")
    weights = quantized.weights.overlay()
    for found in scale.finditer(text):
        finer = 4 if found[3] == "1" else 2
        text = text.replace(found[0], f"{found[1]}: f32[{found[2]}, {finer * int(found[3])}]")
        weights.set(found[1][1:], quantized.weights[found[1][1:]].load().repeat_interleave(finer, 1))
    segments = compare(parse_program(text), weights, 15)
    assert {it.node.op for it in segments} == {"optpipe.quant_linear"}


def test_the_first_operation_with_a_size_of_the_step_and_a_dtype(artifact):
    positions = "%at: i64[T] = aten.arange(T, dtype=i64)\n%0: "
    program = parse_program(
        print_program(artifact.program).replace("%0: ", positions, 1).replace("(%position_ids,", "(%at,", 1)
    )
    (segment,) = compare(program, artifact.weights, 1)
    assert segment.reason == "aten.arange has no kernel"


def test_the_cache_is_never_handed_out(artifact):
    """Its layout is the kernels' own: torch would read other numbers than it is meant to."""
    program = rewritten(artifact, "%k_cache.0, %v_cache.0, %slot", "%v_cache.0, %k_cache.0, %slot")
    rule = RULES.pop("optpipe.kv_write")
    try:
        with pytest.raises(
            ArtifactError, match=r"cannot run 'optpipe.kv_write' of .* whose layout is the kernels'"
        ):
            CpuTarget().load(program, artifact.weights)
    finally:
        RULES["optpipe.kv_write"] = rule


def test_what_neither_can_hold_is_refused_when_it_is_loaded(artifact):
    text = print_program(artifact.program).replace(
        "%0: ",
        "%far: i64[T, 1] = aten.reshape(%position_ids, [T, 1])\n"
        "%pairs: i64[T, T] = aten.mul.Tensor(%far, %position_ids)\n%0: ",
        1,
    )
    with pytest.raises(ArtifactError, match=r"cannot run 'aten.mul.Tensor' of .* no multiple of T, R or B"):
        CpuTarget().load(parse_program(text), artifact.weights)
