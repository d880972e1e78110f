"""Where a kernel's test runs: in the interpreter, and on a GPU when there is one."""

from __future__ import annotations

import pytest
import torch

GPU = pytest.mark.gpu


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return request.param


@pytest.fixture(
    params=["cpu-float32", "cpu-float16"]
    + [pytest.param(f"cuda-{kind}", marks=GPU) for kind in ("float32", "float16", "bfloat16")]
)
def place(request):
    """A device and a type that kernels compute in there; the interpreter has no bfloat16."""
    device, kind = request.param.split("-")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return {"device": device, "dtype": getattr(torch, kind)}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
