"""The activation functions that ``gated_act`` and ``moe`` know, by the field's names."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..errors import KernelError

Activation = Callable[[torch.Tensor], torch.Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def activation(kind: str) -> Activation:
    """The function named ``kind``.

    Raises:
        KernelError: there is none.
    """
    if kind not in ACTIVATIONS:
        raise KernelError(f"activation '{kind}' is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[kind]
