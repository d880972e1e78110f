"""The source model's own code in float64: what it computes when nothing is rounded.

Modelling code asks for float32 by name where it wants more than float16 (norms, softmax, rotary angles). In
float64 that would round again what is to be exact, so every mention of float32 means float64 here, as it
does when a graph is run in float64. Numbers that the code holds as float32 are rounded first, then widened:
they are the model's, like its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.scalar_tensor, torch.full)


class Float32MeansFloat64(TorchFunctionMode):
    """Within, what would be made or cast to float32 becomes float64."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        elif func not in _FROM_NUMBERS:
            args = [_named(given) for given in args]
            kwargs = {name: _named(given) for name, given in kwargs.items()}
        made = func(*args, **kwargs)
        return made.double() if isinstance(made, torch.Tensor) and made.dtype is torch.float32 else made


def _named(given: Any) -> Any:
    return torch.float64 if given is torch.float32 else given
