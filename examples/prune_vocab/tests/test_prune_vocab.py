"""``prune-vocab``: the graph afterwards, one test for each guard, and the numbers."""

import pytest
import torch

from optpipe.testing import check_ir
from optpipe_prune_vocab.prune_vocab import PruneVocab, special_tokens

HEAD = """
optpipe.program 1
input %x: f32[R, 4]
weight @head: f32[10, 4] stored f32
%y: f32[R, 10] = aten.linear(%x, @head)
return %y
"""


def test_computes_only_the_tokens_that_are_kept():
    check_ir(
        PruneVocab(keep=3),
        HEAD,
        """
        CHECK: [[FEW:%.*]]: f32[R, 3] = aten.linear(%x, @head_kept)
        CHECK: [[LOW:%.*]]: f32[R, 1] = aten.amin([[FEW]], [-1], true)
        CHECK: [[ALL:%.*]]: f32[R, 4] = aten.cat([[[FEW]], [[LOW]]], -1)
        CHECK: {{%.*}}: f32[R, 10] = aten.index_select([[ALL]], 1, @head_places)
        """,
    )


def test_a_head_behind_a_soft_cap_is_found():
    capped = HEAD.replace("return %y", "%z: f32[R, 10] = aten.tanh(%y)\nreturn %z")
    check_ir(PruneVocab(keep=3), capped, "CHECK: f32[R, 3] = aten.linear")


def test_a_bias_is_cut_with_the_weight():
    biased = HEAD.replace("%y:", "weight @bias: f32[10] stored f32\n%y:").replace("@head)", "@head, @bias)")
    check_ir(PruneVocab(keep=3), biased, "CHECK: f32[R, 3] = aten.linear(%x, @head_kept, @bias_kept)")


def test_a_quantized_head_stays_quantized():
    packed = HEAD.replace("f32[10, 4] stored f32", "i32[10, 1] stored i32").replace(
        "%y: f32[R, 10] = aten.linear(%x, @head)",
        "weight @scale: f32[10, 1] stored f16\n"
        "%y: f32[R, 10] = optpipe.quant_linear(%x, @head, @scale, bits=8, group=-1)",
    )
    check_ir(PruneVocab(keep=3), packed, "CHECK: optpipe.quant_linear(%x, @head_kept, @scale_kept")


def test_logits_that_are_no_product_are_left_alone():
    other = HEAD.replace("return %y", "%z: f32[R, 10] = aten._softmax(%y, -1, false)\nreturn %z")
    check_ir(PruneVocab(keep=3), other, "CHECK-NOT: head_kept")


def test_a_small_vocabulary_is_left_alone():
    check_ir(PruneVocab(keep=10), HEAD, "CHECK-NOT: head_kept")


def test_special_tokens_of_the_config():
    config = {"eos_token_id": [1, 7], "bos_token_id": 0, "pad_token_id": None, "vocab_size": 9}
    assert sorted(special_tokens(config)) == [0, 1, 7]


def test_an_option_out_of_range_is_refused():
    with pytest.raises(ValueError, match="keep"):
        PruneVocab(keep=0)


def test_kept_logits_are_the_same_and_the_others_lowest():
    """The arithmetic of the pass on its own, against the whole head."""
    torch.manual_seed(0)
    hidden, weight, kept = torch.randn(5, 4), torch.randn(10, 4), torch.tensor([0, 1, 2, 7])
    places = torch.full((10,), 4)
    places[kept] = torch.arange(4)
    few = hidden @ weight[kept].T
    pruned = torch.cat([few, few.amin(-1, keepdim=True)], -1)[:, places]
    torch.testing.assert_close(pruned[:, kept], (hidden @ weight.T)[:, kept])
    left_out = [it for it in range(10) if it not in kept]
    assert torch.equal(pruned[:, left_out], few.amin(-1, keepdim=True).expand(5, 6))
