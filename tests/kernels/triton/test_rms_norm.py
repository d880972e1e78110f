from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from optpipe.dialect import add_rms_norm as added
from optpipe.dialect import rms_norm as plain
from optpipe.errors import KernelError
from optpipe.testing import tolerance
from optpipe_kernels.triton.launch import Launch
from optpipe_kernels.triton.rms_norm import add_rms_norm, norm, rms_norm
from optpipe_kernels.triton.rows import as_bytes, e4m3_bits, quantized_rows


def near(found, expected):
    kind = str(expected.dtype).removeprefix("torch.")
    torch.testing.assert_close(found, expected, **tolerance(kind))


@pytest.mark.parametrize("width", [1, 12, 33, 576, 1500])
@pytest.mark.parametrize("offset", [False, True])
def test_equals_the_dialect(place, width, offset):
    x, w = torch.randn(5, width, **place) * 4, torch.randn(width, **place)
    near(rms_norm(x, w, eps=1e-5, unit_offset=offset), plain.rms_norm(x, w, eps=1e-5, unit_offset=offset))


def test_every_head_of_a_fused_projection_is_one_launch(place):
    x = torch.randn(19, 5 * 20, **place)[:, 20:80].reshape(19, 3, 20)
    assert not x.is_contiguous()
    near(rms_norm(x, None, eps=1e-6), plain.rms_norm(x, None, eps=1e-6))


def test_many_leading_dimensions(place):
    x, w = torch.randn(2, 3, 2, 7, **place), torch.randn(7, **place)
    near(rms_norm(x, w, eps=1e-6), plain.rms_norm(x, w, eps=1e-6))


@pytest.mark.parametrize("width", [12, 576])
def test_the_sum_and_its_norm(place, width):
    x, w = torch.randn(4, width + 3, **place)[:, :width], torch.randn(width, **place)
    residual = torch.randn(4, width, **place) * 3
    out, total = add_rms_norm(x, residual, w, eps=1e-5)
    expected, sums = added.add_rms_norm(x, residual, w, eps=1e-5)
    assert torch.equal(total, sums)
    near(out, expected)


@pytest.mark.parametrize("offset", [False, True])
def test_the_branch_is_normed_before_the_sum(place, offset):
    x, residual = torch.randn(4, 100, **place) * 3, torch.randn(4, 100, **place)
    first, w = torch.randn(100, **place), torch.randn(100, **place)
    branch = plain.rms_norm(x, first, eps=1e-5, unit_offset=offset)
    expected, sums = added.add_rms_norm(branch, residual, w, eps=1e-5, unit_offset=offset)
    found = norm(x, w, eps=1e-5, unit_offset=offset, residual=residual, branch=first)
    near(found.total, sums)
    near(found.out, expected)


def test_a_factor_of_the_branch(place):
    x, residual = torch.randn(4, 100, **place), torch.randn(4, 100, **place)
    found = norm(x, None, eps=1e-5, residual=residual, factor=0.6)
    near(found.total, (x.float() * 0.6 + residual.float()).to(x.dtype))
    near(found.out, plain.rms_norm(found.total, None, eps=1e-5))


def test_operands_whose_walks_differ(place):
    x = torch.randn(2, 3, 4, 8, **place).transpose(0, 1)
    residual = torch.randn(3, 2, 4, 8, **place)
    near(add_rms_norm(x, residual, None, eps=1e-5)[0], added.add_rms_norm(x, residual, None, eps=1e-5)[0])


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("width", [33, 576])
def test_codes_are_those_of_what_it_would_have_written(place, kind, width):
    x, w = torch.randn(5, width, **place), torch.randn(width, **place)
    x[2] = 0
    both = norm(x, w, eps=1e-5, quantize=kind)
    codes, scale = quantized_rows(both.out, kind)
    torch.testing.assert_close(both.scale, scale)
    different = as_bytes(both.codes) != as_bytes(codes)
    assert different.sum() <= (0 if x.device.type == "cpu" else 2)  # a GPU's division is 1 ulp off
    alone = norm(x, w, eps=1e-5, quantize=kind, write=False)
    assert alone.out is None
    assert torch.equal(as_bytes(alone.codes), as_bytes(both.codes))


@triton.jit
def bytes_kernel(x_ptr, out_ptr, count: tl.constexpr):
    at = tl.arange(0, count)
    tl.store(out_ptr + at, e4m3_bits(tl.load(x_ptr + at)))


def test_all_float8_numbers_and_what_lies_between_them_round_as_torch_does(device):
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (numbers[1:] + numbers[:-1]) / 2
    values = torch.cat([numbers, middles, middles * 1.001, middles * 0.999, torch.zeros(7)])
    values = torch.cat([values, -values]).to(device)
    out = torch.zeros(1024, dtype=torch.uint8, device=device)
    padded = torch.nn.functional.pad(values, (0, 1024 - len(values)))
    Launch(bytes_kernel, (1, 1, 1), (padded, out), {"count": 1024}).run()
    assert torch.equal(out, padded.to(torch.float8_e4m3fn).view(torch.uint8))


def test_a_row_has_the_same_bits_alone(place):
    x, w = torch.randn(9, 100, **place), torch.randn(100, **place)
    together = rms_norm(x, w, eps=1e-5)
    for t in range(9):
        assert torch.equal(rms_norm(x[t : t + 1], w, eps=1e-5)[0], together[t])


def test_no_rows(device):
    assert rms_norm(torch.empty(0, 8, device=device), None, eps=1e-5).shape == (0, 8)


def test_a_row_too_wide():
    with pytest.raises(KernelError, match="wider"):
        rms_norm(torch.empty(1, 1 << 17), None, eps=1e-5)
