from __future__ import annotations

import pytest
import torch

from optpipe.dialect.quant_linear import dequantize
from optpipe.errors import KernelError
from optpipe_kernels.triton.dense_linear import dense_linear
from optpipe_kernels.triton.greedy_head import greedy_head
from optpipe_kernels.triton.packing import repack
from optpipe_kernels.triton.quant_tile import splits


@pytest.mark.parametrize(
    ("rows", "size", "width"), [(1, 300, 64), (5, 131, 100), (40, 70, 24), (70, 257, 130)]
)
@pytest.mark.parametrize("biased", [False, True])
def test_the_tokens_of_the_largest_logits(place, rows, size, width, biased):
    x, head = torch.randn(rows, width, **place), torch.randn(size, width, **place)
    bias = torch.randn(size, **place) * 5 if biased else None
    logits = x.double() @ head.double().T + (0 if bias is None else bias.double())
    found = greedy_head(x, head, bias)
    top = logits.gather(1, found[:, None]).squeeze(1)
    assert ((logits.amax(1) - top) < 1e-4).all()  # a near tie may go either way in float32
    assert (found == logits.argmax(1)).float().mean() > 0.98


def test_equal_logits_go_to_the_lowest_id(place):
    head = torch.ones(300, 16, **place)
    head[:100] = -1
    x = torch.ones(3, 16, **place)
    x[2] = -1
    assert greedy_head(x, head).tolist() == [100, 100, 0]


def test_a_nan_is_taken_as_numpy_does(place):
    head = torch.ones(300, 16, **place)
    head[200] = torch.nan
    assert greedy_head(torch.ones(2, 16, **place), head).tolist() == [200, 200]


@pytest.mark.parametrize(
    ("bits", "group", "minimum"),
    [(4, 32, False), (4, -1, False), (4, 128, True), (8, -1, False), (8, 64, False)],
)
def test_a_packed_head(device, bits, group, minimum):
    size, width = 131, 256
    groups = 1 if group == -1 else width // group
    packed = torch.randint(-(2**31), 2**31, (size, width * bits // 32), dtype=torch.int64).int()
    scale = torch.rand(size, groups).half() / 8 + 0.1
    low = -scale * 7 if minimum else None
    values = dequantize(packed, scale, low, bits, torch.float32)
    x = torch.randn(20, width).half()
    head = repack(packed, scale, low, bits=bits, group=group, dtype=torch.float16)
    logits = x.double() @ values.double().T
    moved = type(head)(
        **{
            name: part.to(device) if isinstance(part := getattr(head, name), torch.Tensor) else part
            for name in head.__slots__
        }
    )
    found = greedy_head(x.to(device), moved).cpu()
    top = logits.gather(1, found[:, None]).squeeze(1)
    assert ((logits.amax(1) - top) < 0.05 * logits.std()).all()  # weights are rounded to float16 once
    assert (found == logits.argmax(1)).float().mean() > 0.9


def test_a_row_has_the_same_token_alone(place):
    x, head = torch.randn(37, 64, **place), torch.randn(500, 64, **place)
    together = greedy_head(x, head)
    for row in (0, 16, 36):
        assert greedy_head(x[row : row + 1], head)[0] == together[row]


@pytest.mark.parametrize(("size", "width"), [(70, 1100), (17000, 130)])  # sums of several runs, and of one
def test_the_tokens_are_the_argmax_of_the_logits_that_the_linear_layers_write(device, size, width):
    x, head = torch.randn(9, width, device=device).half(), torch.randn(size, width, device=device).half()
    logits = dense_linear(x, head, dtype=torch.float32)
    assert torch.equal(greedy_head(x, head), logits.argmax(1))
    assert (splits(size, width) > 1) == (size == 70)


def test_operands_that_disagree():
    with pytest.raises(KernelError, match="head"):
        greedy_head(torch.ones(1, 8), torch.ones(4, 9))


def test_no_rows(device):
    assert greedy_head(torch.empty(0, 8, device=device), torch.ones(4, 8, device=device)).shape == (0,)
