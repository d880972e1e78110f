"""The kit's own checks: directives hold or fail, passes run, contracts are measured."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from optpipe.errors import ContractError, PassError
from optpipe.pipeline import Pass, Stage
from optpipe.testing import TOLERANCES, assert_contract, check_ir, check_text, tolerance

aten = torch.ops.aten

SCALED = """
    optpipe.program 1
    input %x: f32[T, 4]
    weight @w: f32[3, 4] stored bf16
    %1: f32[T, 3] = aten.linear(%x, @w)
    %2: f32[T, 3] = aten.mul.Tensor(%1, 0.5)
    return %2
"""


@dataclass(frozen=True)
class DropScale(Pass):
    """Forget products with a number. Wrong on purpose."""

    name: ClassVar[str] = "drop-scale"
    stage: ClassVar[Stage] = Stage.FUSE

    def apply(self, graph, cx):
        for node in list(graph.nodes):
            if node.target is aten.mul.Tensor and isinstance(node.args[1], float):
                cx.replace(node, lambda: node.args[0])  # noqa: B023


@dataclass(frozen=True)
class Lying(Pass):
    """Leave a node that says another shape than it has."""

    name: ClassVar[str] = "lying"
    stage: ClassVar[Stage] = Stage.FUSE

    def apply(self, graph, cx):
        node = next(n for n in graph.nodes if n.target is aten.linear.default)
        node.meta["val"] = node.meta["val"].to(torch.float64)


def test_directives_that_hold_pass():
    check_text(
        SCALED, "CHECK: [[Y:%.*]]: f32[T, 3] = aten.linear(%x, @w)\nCHECK-NEXT: aten.mul.Tensor([[Y]], 0.5)"
    )


@pytest.mark.parametrize(
    "checks", ["CHECK: aten.add", "CHECK-NOT: aten.mul", "CHECK: aten.mul\nCHECK: aten.linear"]
)
def test_directives_that_do_not_hold_fail_and_show_the_graph(checks):
    with pytest.raises(AssertionError, match=r"The graph is:") as caught:
        check_text(SCALED, checks)
    assert "\x1b" not in str(caught.value)


def test_checks_without_a_directive_fail():
    with pytest.raises(AssertionError, match="No check strings"):
        check_text(SCALED, "aten.linear")


def test_a_pass_runs_over_text():
    after = check_ir(DropScale(), SCALED, "CHECK-NOT: aten.mul", runs=2)
    check_text(after, "CHECK: return %0")


def test_a_graph_that_is_given_is_left_as_it_is():
    import textwrap

    from optpipe.program import parse_program, to_fx

    gm = to_fx(parse_program(textwrap.dedent(SCALED).strip() + "\n"))
    check_ir(DropScale(), gm, "CHECK-NOT: aten.mul")
    check_text(gm, "CHECK: aten.mul")


def test_weights_have_the_dtype_they_are_stored_in():
    seen = {}

    @dataclass(frozen=True)
    class Look(Pass):
        """Look at a weight."""

        name: ClassVar[str] = "look"
        stage: ClassVar[Stage] = Stage.FUSE

        def apply(self, graph, cx):
            seen["w"] = cx.weights["w"].load()

    check_ir(Look(), SCALED, "CHECK: aten.linear")
    assert seen["w"].dtype is torch.bfloat16
    check_ir(Look(), SCALED, "CHECK: aten.linear", weights={"w": torch.zeros(3, 4)})
    assert not seen["w"].any()


def test_a_graph_that_does_not_hold_together_is_refused():
    with pytest.raises(PassError):
        check_ir(Lying(), SCALED, "CHECK: aten.linear")


def test_a_contract_that_holds_is_reported():
    result = assert_contract("llama", "fuse-rope")
    assert result.rewrites == 4
    assert all(finding.holds for finding in result.findings)


def test_a_contract_that_is_broken_raises():
    with pytest.raises(ContractError, match="drop-scale"):
        assert_contract("granite", DropScale())


def test_every_tolerance_says_where_it_is_from():
    assert all(len(row.origin) > 20 for row in TOLERANCES.values())
    torch.testing.assert_close(torch.ones(1), torch.ones(1) + 1e-6, **tolerance("float32"))
