"""``mask`` against a table of who sees whom."""

import pytest
import torch

from optpipe.dialect.mask import mask
from optpipe.errors import KernelError

TABLES = {
    ("causal", None): ["1....", "11...", "111..", "1111.", "11111"],
    ("window", 2): ["1....", "11...", ".11..", "..11.", "...11"],
    ("window", 1): ["1....", ".1...", "..1..", "...1.", "....1"],
    ("window", 9): ["1....", "11...", "111..", "1111.", "11111"],
    ("chunk", 2): ["1....", "11...", "..1..", "..11.", "....1"],
}


@pytest.mark.parametrize(("kind", "size"), TABLES)
def test_is_the_table(kind, size):
    expected = torch.tensor([[seen == "1" for seen in row] for row in TABLES[kind, size]])
    found = mask(torch.zeros(1, 5, 3), kind=kind, size=size)
    assert found.shape == (1, 1, 5, 5)
    assert found[0, 0].equal(expected)


def test_one_token_sees_itself():
    assert mask(torch.zeros(1, 1), kind="causal").all()


def test_another_kind_is_refused():
    with pytest.raises(KernelError, match="mask kind 'full' is not one of causal, window, chunk"):
        mask(torch.zeros(1, 2), kind="full")
