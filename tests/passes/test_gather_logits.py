"""``gather-logits``: the rows wanted, and nothing that would mix rows behind the head."""

import pytest
import torch

from optpipe.graph.interpreter import Interpreter
from optpipe_passes.gather_logits import GatherLogits

HEAD = """
    input %h: f32[T, 8]
    weight @head: f32[5, 8] stored bf16
    %1: f32[T, 5] = aten.linear(%h, @head)
"""
BEHIND = {
    "nothing": "return %1",
    "softcap": """
    %2: f32[T, 5] = aten.div.Tensor(%1, 30.0)
    %3: f32[T, 5] = aten.tanh(%2)
    %4: f32[T, 5] = aten.mul.Tensor(%3, 30.0)
    return %4""",
    "unused columns": "%2: f32[T, 3] = aten.slice.Tensor(%1, -1, 0, 3)\nreturn %2",
    "a bias": "input %b: f32[5]\n%2: f32[T, 5] = aten.add.Tensor(%1, %b)\nreturn %2",
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_gathers_before_the_head(rewrite, behind):
    lines = behind.split("\n")
    inputs = "".join(line + "\n" for line in lines if line.startswith("input"))
    text = inputs + HEAD + "\n".join(line for line in lines if not line.startswith("input"))
    made = rewrite(GatherLogits(), text).agrees()
    made.check("""
        CHECK: input %logit_rows: i64[R]
        CHECK: [[G:%.*]]: f32[R, 8] = optpipe.gather_rows(%h, %logit_rows)
        CHECK-NEXT: f32[R, 5] = aten.linear([[G]], @head)
        CHECK: return
    """)
    assert made.rewrites == 1
    assert made.again() == 0


def test_rows_come_as_they_are_asked_for(rewrite):
    made = rewrite(GatherLogits(), HEAD + "return %1")
    h, rows = torch.randn(7, 8), torch.tensor([6, 0, 6])
    whole = Interpreter(made.before, made.given).run({"h": h})
    torch.testing.assert_close(
        Interpreter(made.after, made.weights).run({"h": h, "logit_rows": rows}), whole[rows]
    )


def test_the_hidden_state_keeps_all_rows_for_its_other_users(rewrite):
    text = HEAD.replace("%h, @head", "%0, @head").replace(
        "    %1:", "    %0: f32[T, 8] = aten.tanh(%h)\n    %1:"
    )
    made = rewrite(GatherLogits(), text + "return %1").agrees()
    made.check("CHECK: f32[T, 8] = aten.tanh\nCHECK-NEXT: optpipe.gather_rows")


MIXED = {
    "tokens are summed up": ("%2: f32[T, 5] = aten.cumsum(%1, 0)\nreturn %2", "aten.cumsum.default"),
    "the first row is dropped": ("%2: f32[T, 5] = aten.flip(%1, [0])\nreturn %2", "aten.flip.default"),
    "another matrix is added": ("%2: f32[T, 5] = aten.add.Tensor(%1, %o)\nreturn %2", "aten.add.Tensor"),
    "rows are sliced": ("%2: f32[3, 5] = aten.slice.Tensor(%1, 0, 0, 3)\nreturn %2", "aten.slice.Tensor"),
}


@pytest.mark.parametrize(("behind", "culprit"), MIXED.values(), ids=MIXED)
def test_what_mixes_rows_behind_the_head_is_left(rewrite, behind, culprit):
    other = "input %o: f32[T, 5]\n" if "%o" in behind else ""
    made = rewrite(
        GatherLogits(),
        (other + HEAD + behind).replace("[T,", "[4,") if "3, 5" in behind else other + HEAD + behind,
    )
    assert made.rewrites == 0
    assert made.missed == [f"'{culprit}' stands between the LM head and the output"]
    made.check("CHECK-NOT: gather_rows\nCHECK: return")
