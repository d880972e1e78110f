"""The activation functions of ``optpipe.dialect.activations`` for kernels, in float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """tanh(x) = 1 − 2 / (e^2x + 1); near 0, where that cancels, x − x³/3 + 2x⁵/15 − 17x⁷/315."""
    square = x * x
    near = x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    far = 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)
    return tl.where(square < 0.04, near, far)


@triton.jit
def activate(x, KIND: tl.constexpr):
    """The activation KIND of x float32: silu, gelu, gelu_tanh, relu, relu2, sigmoid or tanh."""
    if KIND == "silu":
        y = x * tl.sigmoid(x)
    elif KIND == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        y = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif KIND == "relu":
        y = tl.maximum(x, 0.0)
    elif KIND == "relu2":
        positive = tl.maximum(x, 0.0)
        y = positive * positive
    elif KIND == "sigmoid":
        y = tl.sigmoid(x)
    else:
        tl.static_assert(KIND == "tanh", "an activation that the kernels do not know")
        y = tanh(x)
    return y
