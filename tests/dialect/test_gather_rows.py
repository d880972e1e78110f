"""``gather_rows`` picks rows in the order asked for."""

import torch

from optpipe.dialect.gather_rows import gather_rows


def test_rows_come_in_the_order_given_and_may_repeat(randn):
    x = randn(4, 3)
    assert gather_rows(x, torch.tensor([3, 0, 3])).equal(torch.stack([x[3], x[0], x[3]]))


def test_no_row_is_fine(randn):
    assert gather_rows(randn(4, 3), torch.tensor([], dtype=torch.int64)).shape == (0, 3)
