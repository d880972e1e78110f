"""``dense_linear`` against float64, and one row's bits among any others."""

from __future__ import annotations

import pytest
import torch

from optpipe.errors import KernelError
from optpipe_kernels.triton.dense_linear import dense_linear, launches
from optpipe_kernels.triton.tiles import CAPABILITIES, tile


def operands(rows, height, columns, dtype, device):
    generator = torch.Generator().manual_seed(rows + height)
    make = [
        torch.randn(shape, generator=generator) for shape in ((rows, columns), (height, columns), (height,))
    ]
    return [it.to(dtype).to(device) for it in make]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(1, 65, 72), (3, 128, 512), (37, 200, 576), (130, 70, 96)])
def test_equals_float64(shape, biased, device):
    dtype = torch.float16 if device == "cpu" else torch.bfloat16
    x, weight, bias = operands(*shape, dtype, device)
    found = dense_linear(x, weight, bias if biased else None, dtype=torch.float32)
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double() if biased else None)
    assert (found - exact).norm() <= 1e-5 * exact.norm()  # float32 sums of products that are exact
    rounded = dense_linear(x, weight, bias if biased else None)
    assert torch.equal(rounded, found.to(dtype))


def test_a_row_has_the_same_bits_among_any_others(device):
    # 576 inputs of 64 rows of W: several runs, which few rows cut across programs and many walk inside
    x, weight, _ = operands(70, 128, 1024, torch.float16, device)
    whole = dense_linear(x, weight)
    for count in (1, 2, 17, 33, 64):
        assert torch.equal(dense_linear(x[:count], weight), whole[:count])


def test_a_strided_input_and_leading_dimensions():
    x, weight, bias = operands(6, 32, 64, torch.float16, "cpu")
    wide = torch.cat((x, x), dim=1)
    assert torch.equal(
        dense_linear(wide[:, :64].view(2, 3, 64), weight, bias).view(6, 32), dense_linear(x, weight, bias)
    )
    assert dense_linear(x[:0], weight).shape == (0, 32)


def test_refuses_another_width_or_dtype():
    x, weight, _ = operands(2, 32, 64, torch.float16, "cpu")
    with pytest.raises(KernelError, match="got"):
        dense_linear(x[:, :32], weight)
    with pytest.raises(KernelError, match="float32"):
        dense_linear(x.float(), weight)


@pytest.mark.parametrize("key", [f"sm_{it}" for it in CAPABILITIES])
def test_every_row_of_the_table_walks_k_in_the_same_blocks(key):
    sizes = {tile("dense_linear", key, rows=rows).constants["BLOCK_K"] for rows in (1, 17, 33, 65, 129, 5000)}
    assert len(sizes) == 1


def test_few_rows_are_cut_into_programs_and_many_are_not():
    meta = {"device": "meta", "dtype": torch.float16}
    weight = torch.empty(4096, 4096, **meta)
    few, many = (
        launches(torch.empty(rows, 4096, **meta), weight, torch.empty(rows, 4096, **meta))
        for rows in (8, 512)
    )
    assert len(few) == 2
    assert few[0].grid[1] > 1
    assert len(many) == 1
    assert few[0].constants["SPLITS"] == many[0].constants["SPLITS"] > 1
