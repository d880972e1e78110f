"""Where a kernel's test runs: in the interpreter, and on a GPU when there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

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


@pytest.fixture
def chained_dots(monkeypatch):
    """Dots as tensor cores do them: chains of instructions of 16 inputs; elements do not know each other.

    The interpreter's own are a BLAS's, which sums by how many rows and columns there are.
    """

    def dot(self, a, b, d, *_):
        left, right, total = (x.data.astype(np.float32) for x in (a, b, d))
        for at in range(0, left.shape[1], 16):
            total = total + (left[:, at : at + 16, None] * right[None, at : at + 16]).sum(axis=1)
        return interpreter.TensorHandle(total, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
