"""The source model itself, run from lazy weights: what every rewrite is held against.

The model's own modelling code runs in float32 with transformers' eager attention. Its parameters are
never materialised: a torch function mode hands each operation the real weight for as long as it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..graph import streamed
from ..weights.cache import WeightCache
from ..weights.store import LazyWeight, Weights
from .wide import Float32MeansFloat64


class _RealWeights(TorchFunctionMode):
    """Replace placeholder parameters by their values in every torch call."""

    def __init__(self, lazy: dict[int, LazyWeight], cache: WeightCache, dtype: torch.dtype) -> None:
        super().__init__()
        self._lazy = lazy
        self._cache = cache
        self._dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding and len(args) > 1 and (table := self._lazy.get(id(args[1]))) is not None:
            return streamed.embedding(table, args[0], self._dtype)
        if (
            func is F.linear
            and (matrix := self._lazy.get(id(args[1])))
            and streamed.is_large(matrix, self._dtype)
        ):
            bias = self._real(args[2] if len(args) > 2 else kwargs.get("bias"))
            return streamed.linear(args[0], matrix, bias)
        return func(*[self._real(a) for a in args], **{k: self._real(v) for k, v in kwargs.items()})

    def _real(self, arg: Any) -> Any:
        if isinstance(arg, list | tuple) and any(id(item) in self._lazy for item in arg):
            return type(arg)(self._real(item) for item in arg)
        weight = self._lazy.get(id(arg))
        if weight is None:
            return arg
        return self._cache.load(weight, self._dtype if weight.dtype.is_floating_point else None)


class EagerModel:
    """Logits of the source model.

    Args:
        model: the model's own class with placeholder parameters (see ``empty_model``).
        weights: real values by parameter name; a parameter that is not here keeps the module's value.
        attention: transformers' name of the attention to run.
        cache: keeps weights in memory between runs; None reads them again every time.
        dtype: what the model's float32 stands for: float32, or float64 for logits without its noise.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Weights,
        attention: str = "eager",
        cache: WeightCache | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._dtype = dtype
        self._cache = cache or WeightCache(0)
        self._model = model
        self._attention = attention
        named = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        self._tensors = {
            id(tensor): tensor for name, tensor in named if name in weights
        }  # keeps the ids alive
        self._lazy = {id(tensor): weights[name] for name, tensor in named if name in weights}

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, rows: torch.Tensor | None = None, begin: int = 0) -> torch.Tensor:
        """Logits of sequences of one length.

        Args:
            ids: [N, T] int64.
            rows: [R] int64, the rows wanted of each, or None for all.
            begin: the position of the first token of each; the model must take positions where it is not 0.

        Returns:
            [N, T or R, V] in the dtype that was asked for.
        """
        select_attention(self._model, self._attention)
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        parameters = forward_parameters(self._model)
        if begin:
            assert "position_ids" in parameters, f"{type(self._model).__name__} takes no positions"
            first = begin + position_offset(self._model)
            inputs["position_ids"] = torch.arange(first, first + ids.shape[1]).expand(ids.shape)
        if rows is not None and "logits_to_keep" in parameters:
            inputs["logits_to_keep"] = rows
            rows = None
        wide = Float32MeansFloat64() if self._dtype is torch.float64 else contextlib.nullcontext()
        with _RealWeights(self._lazy, self._cache, self._dtype), wide:
            out: torch.Tensor = self._model(**inputs).logits
        return (out if rows is None else out[:, rows]).to(self._dtype)


def forward_parameters(model: nn.Module) -> set[str]:
    """The names that the model's forward takes."""
    import inspect

    return set(inspect.signature(model.forward).parameters)


def position_offset(model: nn.Module) -> int:
    """What the model adds to the positions 0, 1, … of a sequence when it is given none.

    RoBERTa and its kin number tokens from one past the index of the padding token, and expect a caller that
    gives positions to do so too.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            return int(module.padding_idx) + 1
    return 0


def select_attention(model: nn.Module, name: str, experts: str | None = None) -> None:
    """Choose the attention and experts implementations of every part of a model.

    Experts follow the attention, "optpipe" or "eager", unless they are named.

    The configs are set directly: transformers' setter refuses names that a model has not declared, and
    several models that honour the registry have not.
    """
    experts = experts or ("optpipe" if name == "optpipe" else "eager")
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation_internal"):
            config._attn_implementation_internal = name
            config._experts_implementation_internal = experts
