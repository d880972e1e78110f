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
        args = [_named(given) for given in args]
        kwargs = {name: _named(given) for name, given in (kwargs or {}).items()}
        if func in _FROM_NUMBERS:
            return _rounded(func, args, kwargs)
        made = (torch.Tensor.double if func is torch.Tensor.float else func)(*args, **kwargs)
        return made.double() if isinstance(made, torch.Tensor) and made.dtype is torch.float32 else made


def _rounded(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
    """Numbers as float32 has them; those past its range are float64's own, such as its lowest."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        made: torch.Tensor = func(*args, **kwargs)
    finally:
        torch.set_default_dtype(default)
    if made.dtype is not torch.float64:
        return made
    rounded = made.float().double()
    return torch.where(rounded.isinf(), made, rounded)


def _named(given: Any) -> Any:
    return torch.float64 if given is torch.float32 else given
