"""Checkpoints of several parts (text and vision): the text part alone, under its own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from optpipe.weights import LazyWeight

_PREFIXES = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.text_model.": "model.",
    "language_model.": "model.",
    "text_model.": "model.",
    "lm_head.": "lm_head.",
}


def text_weights(
    model: PreTrainedModel, config: Mapping[str, Any], stored: Mapping[str, LazyWeight]
) -> Mapping[str, LazyWeight]:
    """What belongs to the text model, when the checkpoint has more than that; else everything.

    Args:
        model: the text model.
        config: the checkpoint's own config.
    """
    if config.get("model_type") == model.config.model_type or "text_config" not in config:
        return stored
    chosen = {}
    for name, weight in stored.items():
        prefix = next((one for one in _PREFIXES if name.startswith(one)), None)
        if prefix is not None:
            chosen[_PREFIXES[prefix] + name.removeprefix(prefix)] = weight
    return chosen or stored
