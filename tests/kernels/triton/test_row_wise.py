"""8-bit activations and weights against the same numbers multiplied in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from optpipe.errors import KernelError
from optpipe_kernels.triton.row_wise import quantize, row_wise_linear, why_not_cublas
from optpipe_kernels.triton.rows import CODES, quantized_rows

from .quant_cases import error


def operands(kind, rows, width, columns, device="cpu"):
    """Codes and scales of x [rows, columns] and of a weight [width, columns]."""
    x, weight = torch.randn(rows, columns), torch.randn(width, columns)
    return [part.to(device) for side in (x, weight) for part in quantized_rows(side, kind)]


def product(codes, scale, weight, weight_scale):
    a, b = codes.cpu().double() * scale.cpu()[:, None], weight.cpu().double() * weight_scale.cpu()[:, None]
    return a @ b.T


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize(("rows", "width", "columns"), [(1, 70, 256), (5, 33, 200), (20, 129, 136)])
def test_equals_the_product_of_the_codes(kind, rows, width, columns, device):
    both = operands(kind, rows, width, columns, device)
    bias, residual = torch.randn(width).to(device), torch.randn(rows, width).to(device)
    expected = product(*both)
    assert error(row_wise_linear(*both, dtype=torch.float32), expected) < 1e-5
    actual = row_wise_linear(*both, bias, residual, dtype=torch.float32)
    assert error(actual, expected + bias.double().cpu() + residual.double().cpu()) < 1e-5


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantize_equals_its_reference(kind, device):
    x = torch.randn(2, 3, 200)
    x[0, 1] = 0
    codes, scale = quantize(x.half().to(device), kind)
    expected, scales = quantized_rows(x.half(), kind)
    assert codes.dtype == CODES[kind]
    assert torch.equal(codes.cpu().float(), expected.float())
    assert torch.equal(scale.cpu(), scales)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_row_that_is_not_numbers_stays_so(kind, device):
    """A GPU's maximum drops NaN: codes and scale would be those of numbers."""
    x = torch.randn(4, 40, device=device)
    x[1, 3], x[2, 39] = torch.nan, torch.inf
    codes, scale = quantize(x, kind)
    assert scale.isfinite().tolist() == [True, False, False, True]
    assert scale[1].isnan()
    weight, factors = quantize(torch.randn(5, 40, device=device), kind)
    found = row_wise_linear(codes, scale, weight, factors, dtype=torch.float32)
    assert found.isfinite().all(1).tolist() == [True, False, False, True]


def test_codes_of_a_view_with_strided_rows(device):
    x = torch.randn(4, 300).half().to(device)[:, :256]
    codes, scale = quantize(x, "int8")
    expected, scales = quantized_rows(x.cpu(), "int8")
    assert torch.equal(codes.cpu(), expected)
    assert torch.equal(scale.cpu(), scales)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_row_has_the_same_bits_in_any_batch(kind):
    codes, scale, *weight = operands(kind, 1024, 4096, 4096, "cuda")
    whole = row_wise_linear(codes, scale, *weight, dtype=torch.bfloat16)
    for count in (1, 16, 17, 64, 65, 512):
        part = row_wise_linear(codes[:count], scale[:count], *weight, dtype=torch.bfloat16)
        assert torch.equal(part, whole[:count])


def test_refuses_operands_that_do_not_meet():
    codes, scale, weight, weight_scale = operands("int8", 1, 4, 64)
    with pytest.raises(KernelError, match=r"codes are torch\.int8, the weight is torch\.float32"):
        row_wise_linear(codes, scale, weight.float(), weight_scale, dtype=torch.float32)
    with pytest.raises(KernelError, match="takes 32 inputs, got 64"):
        row_wise_linear(codes, scale, weight[:, :32], weight_scale, dtype=torch.float32)


def test_cublas_takes_float8_with_sizes_that_divide_and_gives_bfloat16():
    def codes(kind, rows=3, columns=64):
        return SimpleNamespace(is_cuda=True, dtype=kind, shape=(rows, columns))

    fp8, int8 = (codes(kind) for kind in (torch.float8_e4m3fn, torch.int8))
    weight = codes(torch.float8_e4m3fn, 32)
    assert why_not_cublas(fp8, weight, torch.bfloat16) is None
    assert "float8" in why_not_cublas(int8, weight, torch.bfloat16)
    assert "bfloat16" in why_not_cublas(fp8, weight, torch.float16)
    for odd in (codes(fp8.dtype, 24), codes(fp8.dtype, 32, 56)):
        assert "16" in why_not_cublas(fp8, odd, torch.bfloat16)
    assert "CUDA" in why_not_cublas(torch.zeros(3, 64, dtype=torch.float8_e4m3fn), weight, torch.bfloat16)
