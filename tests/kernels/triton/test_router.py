from __future__ import annotations

import pytest
import torch

from optpipe.errors import KernelError
from optpipe_kernels.triton.router import choose_experts


@pytest.mark.parametrize(("tokens", "experts", "slots"), [(1, 4, 2), (37, 60, 4), (5, 6, 6), (70, 128, 8)])
@pytest.mark.parametrize("over_chosen", [False, True])
def test_equals_softmax_top_k_and_the_division(place, tokens, experts, slots, over_chosen):
    logits = torch.stack([torch.randperm(experts) for _ in range(tokens)]).to(**place) / 8
    expected, ids = logits.float().softmax(-1).topk(slots)
    if over_chosen:
        expected = expected / expected.sum(-1, keepdim=True)
    found_ids, found = choose_experts(logits, slots, over_chosen=over_chosen)
    assert torch.equal(found_ids, ids)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-7)


def test_equal_logits_go_to_the_lowest_ids(device):
    logits = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0]], device=device)
    ids, weights = choose_experts(logits, 4, over_chosen=True)
    assert ids.tolist() == [[1, 2, 4, 0]]
    assert torch.equal(weights[0, :3], weights[0, :1].expand(3))


def test_rows_of_a_wider_matrix_and_masked_experts(device):
    logits = torch.randn(5, 12, device=device)[:, 2:9]
    logits[:, 3] = -torch.inf
    ids, weights = choose_experts(logits, 7, over_chosen=False)
    assert (ids[:, -1] == 3).all()
    assert not weights[:, -1].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(5, device=device))


def test_more_slots_than_experts():
    with pytest.raises(KernelError, match="5"):
        choose_experts(torch.ones(1, 4), 5, over_chosen=True)


def test_no_tokens(device):
    ids, weights = choose_experts(torch.empty(0, 4, device=device), 2, over_chosen=True)
    assert ids.shape == weights.shape == (0, 2)
