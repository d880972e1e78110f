"""Give every parameter of a model its stored tensor: ties followed, nothing missing, nothing left over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from optpipe.errors import ModelError
from optpipe.weights.store import LazyWeight, TensorWeight, Weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LISTED = 5  # names listed in an error
_OLD_BUFFERS = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")  # saved by older versions, computed today


def bind(model: PreTrainedModel, found: Mapping[str, LazyWeight]) -> Weights:
    """Match stored tensors with a model's parameters and saved buffers.

    Args:
        model: built without weights (``sources.empty_model``).
        found: stored tensors under the model's own names.

    Raises:
        ModelError: a tensor is missing, unexpected, of another shape, or tied tensors differ.
    """
    weights = Weights()
    missing = []
    for names, tensor in _slots(model):
        present = [name for name in names if name in found]
        if present:
            weight = _only(present, found)
            _check(present[0], weight, tensor)
        elif not isinstance(tensor, torch.nn.Parameter) and _matches(names[0], _ignored(model, "missing")):
            weight = TensorWeight(tensor)
        else:
            missing.append(names[0])
            continue
        weights.update(dict.fromkeys(names, weight))
    _complain_missing(model, missing)
    _complain_unexpected(model, [name for name in found if name not in weights])
    return weights


def _slots(model: PreTrainedModel) -> list[tuple[list[str], torch.Tensor]]:
    """The names of each distinct parameter and saved buffer, with an (empty) tensor of its shape."""
    saved = model.state_dict(keep_vars=True)
    groups: dict[int, tuple[list[str], torch.Tensor]] = {}
    for name, tensor in saved.items():
        groups.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(groups.values())


def _only(names: list[str], found: Mapping[str, LazyWeight]) -> LazyWeight:
    """The one tensor behind tied names; stored twice, it must be the same twice."""
    first = found[names[0]]
    for name in names[1:]:
        if found[name] is not first and not torch.equal(first.load(), found[name].load()):
            raise ModelError(
                f"The config ties '{names[0]}' to '{name}', and the checkpoint has two different ones.",
                hint="set tie_word_embeddings to false in its config.json",
            )
    return first


def _check(name: str, weight: LazyWeight, tensor: torch.Tensor) -> None:
    if tuple(weight.shape) != tuple(tensor.shape):
        raise ModelError(
            f"The stored tensor '{name}' has the shape {tuple(weight.shape)}, and the config asks for "
            f"{tuple(tensor.shape)}."
        )
    if weight.dtype.is_floating_point != tensor.dtype.is_floating_point:
        raise ModelError(f"The stored tensor '{name}' is {weight.dtype}, where the model has {tensor.dtype}.")


def _ignored(model: PreTrainedModel, what: str) -> tuple[str, ...]:
    """The patterns that the model itself does not mind being missing or unexpected."""
    return tuple(getattr(model, f"_keys_to_ignore_on_load_{what}", None) or ())


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _complain_missing(model: PreTrainedModel, missing: list[str]) -> None:
    if missing:
        raise ModelError(
            f"The checkpoint lacks {_listed(missing)}, which {type(model).__name__} needs.",
            hint="is every shard there, and does config.json belong to these weights?",
        )


def _complain_unexpected(model: PreTrainedModel, names: list[str]) -> None:
    patterns = _ignored(model, "unexpected") + _OLD_BUFFERS
    unexpected = [name for name in names if not _matches(name, patterns)]
    if unexpected:
        raise ModelError(
            f"The checkpoint has {_listed(unexpected)}, which {type(model).__name__} has no place for.",
            hint="does config.json belong to these weights?",
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name[:120]}'" for name in sorted(names)[:_LISTED])
    more = len(names) - _LISTED
    return f"{shown} and {more} more tensors" if more > 0 else shown
