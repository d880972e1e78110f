"""Trace a model: one sequence in, logits out, the number of tokens the only symbol."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

import optpipe.dialect  # noqa: F401  (declares the ops that the hooks emit)

from ..errors import TraceError
from ..graph.canonical import eliminate_dead
from ..weights.store import TensorWeight, Weights
from . import attention_hook, experts
from .assemble import assemble
from .bypass import match_attention
from .eager import forward_parameters, position_offset, select_attention
from .explain import depends_on_data, own_way
from .export import exported
from .fold_masks import fold_masks
from .masks import captured_masks
from .mixing import refuse_mixing
from .normalize import PREFIX, normalize
from .positions import bind_positions
from .real import make_real
from .stand_ins import standing_in

ROPE_OF_THE_BATCH = ("dynamic", "longrope")  # chosen by the largest position that is computed at once
EXAMPLE_TOKENS = 11  # odd, prime, and no size that a model is likely to have


@dataclass
class Traced:
    """A traced model.

    Attributes:
        gm: the graph; its get_attr tensors are on meta and carry dtype and shape only.
        weights: their values, lazily, by the same names; constants of the model's code included.
        constants: the names in ``weights`` that no checkpoint has (rotary frequencies and the like).
        counts: whether the model's code counts tokens itself, where the graph reads ``position_ids``: then
            the model cannot be told to begin at a position, and the graph can.
    """

    gm: fx.GraphModule
    weights: Weights
    constants: frozenset[str]
    counts: bool = False


class _Logits(nn.Module):
    """input_ids [1, T], position_ids [1, T] → logits [1, T, V]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model_ = model
        self._takes_positions = "position_ids" in forward_parameters(model)
        self._offset = position_offset(model)
        assert hasattr(self, PREFIX), f"the wrapper's attribute must be {PREFIX = }"

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
        if self._takes_positions:
            inputs["position_ids"] = position_ids + self._offset if self._offset else position_ids
        logits: torch.Tensor = self.model_(**inputs).logits
        return logits


def trace(model: nn.Module, weights: Weights) -> Traced:
    """Export a model with placeholder parameters to a graph over ``weights``.

    Args:
        model: the model's own class in float32 and eval mode; its parameters are never read.
        weights: real values by parameter name.

    Raises:
        TraceError: the model is not a causal decoder of one sequence, or cannot be exported.
    """
    try:
        return _causal_decoder(model, weights)
    except TraceError as error:
        own = own_way(model)
        if own is None:
            raise
        raise TraceError(f"{type(model).__name__} cannot be traced: {own}.") from error


def _causal_decoder(model: nn.Module, weights: Weights) -> Traced:
    _refuse_rope_of_the_batch(model)
    attention_hook.register()
    experts.register()
    experts.prepare(model)
    traced = _trace(model, weights)
    make_real(traced.gm)
    assemble(traced.gm)
    match_attention(traced.gm, traced.weights)
    fold_masks(traced.gm)
    counted = bind_positions(traced.gm)
    eliminate_dead(traced.gm.graph)
    refuse_mixing(traced.gm)
    read = {str(node.target) for node in traced.gm.graph.nodes if node.op == "get_attr"}
    constants = frozenset(name for name in read if name not in weights)  # those that matching made, too
    return Traced(traced.gm, traced.weights, constants, counted > 0)


def _refuse_rope_of_the_batch(model: nn.Module) -> None:
    """Refuse rotary embeddings in which one request of a step changes another."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for kind in kinds.values() if isinstance(kinds, dict) else (kinds,):
            if kind in ROPE_OF_THE_BATCH:
                raise TraceError(
                    f"{type(model).__name__} uses '{kind}' rotary embeddings, whose frequencies depend on "
                    "the longest sequence of a batch: one request would change another."
                )


def _trace(model: nn.Module, weights: Weights) -> Traced:
    with _capturing(model), torch.no_grad():
        program = exported(_Logits(model), EXAMPLE_TOKENS)
    gm, origins = normalize(program, _canonical_names(model))
    if not any(isinstance(size, torch.SymInt) for size in _input(gm).meta["val"].shape):
        raise TraceError(f"{type(model).__name__} fixes the number of tokens while it is traced")
    eliminate_dead(gm.graph)
    _only_tokens(model, gm)
    own, constants = _values(gm, origins, program, weights)
    return Traced(gm, own, constants)


def _only_tokens(model: nn.Module, gm: fx.GraphModule) -> None:
    """Refuse a graph with sizes that depend on more than the number of tokens."""
    from torch.fx.experimental.symbolic_shapes import free_symbols

    tokens = free_symbols(_input(gm).meta["val"])
    for node in gm.graph.nodes:
        for made in torch.utils._pytree.tree_leaves(node.meta.get("val")):
            if isinstance(made, torch.Tensor | torch.SymInt) and not free_symbols(made) <= tokens:
                raise TraceError(f"{type(model).__name__} cannot be traced: {depends_on_data(model)}.")


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a tied tensor → the first name it has, which is the one checkpoints use."""
    first: dict[int, str] = {}
    names = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names[name] = first.setdefault(id(tensor), name)
    return names


def _input(gm: fx.GraphModule) -> fx.Node:
    found: fx.Node = next(node for node in gm.graph.nodes if node.op == "placeholder")
    return found


@contextlib.contextmanager
def _capturing(model: nn.Module) -> Iterator[None]:
    select_attention(model, attention_hook.NAME)
    try:
        with captured_masks(model), standing_in(model):
            yield
    finally:
        select_attention(model, "eager")


def _values(
    gm: fx.GraphModule, origins: dict[str, str], program: torch.export.ExportedProgram, weights: Weights
) -> tuple[Weights, frozenset[str]]:
    """The values behind the graph's weights: the checkpoint's, else the module's own buffers."""
    own = weights.overlay()
    constants = set()
    state = {**program.state_dict, **program.constants}
    for node in gm.graph.nodes:
        if node.op != "get_attr" or node.target in weights:
            continue
        name = str(node.target)
        tensor = state[origins[name]]
        if isinstance(tensor, nn.Parameter):
            raise TraceError(f"the checkpoint has no weight named '{name}'")
        own[name] = TensorWeight(tensor.detach().clone())
        constants.add(name)
    return own, frozenset(constants)
