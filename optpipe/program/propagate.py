"""Run operations on fake tensors: shapes and dtypes come out, nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode


class Propagator:
    """Runs operations under one fake mode, alike calls only once.

    A model of thirty equal layers costs little more than one. What comes back may therefore be the same
    object as before: it is for reading.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._results: dict[Hashable, Any] = {}

    def run(self, op: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``op`` gives. Raises whatever it raises."""
        key = (op, _signature(args), _signature(tuple(kwargs.items())))
        if key not in self._results:
            # In torch 2.11 linear's C++ refuses symbolic sizes; the Python dispatcher decomposes it.
            with self.mode, enable_python_dispatcher(), torch.no_grad():
                self._results[key] = op(*args, **kwargs)
        return self._results[key]


def _signature(argument: Any) -> Hashable:
    """Equal for two arguments that no operation can tell apart on fake tensors."""
    if isinstance(argument, torch.Tensor):
        return (argument.dtype, *map(_size, argument.shape), *map(_size, argument.stride()))
    if isinstance(argument, torch.SymInt):
        return (torch.SymInt, argument.node.expr)
    if isinstance(argument, tuple | list):
        return tuple(map(_signature, argument))
    return (type(argument), argument)


def _size(size: int | torch.SymInt) -> Hashable:
    return size.node.expr if isinstance(size, torch.SymInt) else size
