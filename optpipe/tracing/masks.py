"""While a model is traced, its mask functions say what they mean instead of building a tensor.

transformers' models call ``create_causal_mask`` and its relatives from their own module. For the length of
the trace those names emit ``optpipe::mask(kind, size)``, so that every attention call carries the mask
its model really asked for: several models build window or chunk masks and never pass ``sliding_window``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..errors import TraceError
from .explain import STATE, has_state

MaskFunction = Callable[..., torch.Tensor]

# transformers' function → (kind of mask, config attribute that holds its size)
MEANINGS: dict[str, tuple[str, str | None]] = {
    "create_causal_mask": ("causal", None),
    "create_sliding_window_causal_mask": ("window", "sliding_window"),
    "create_chunked_causal_mask": ("chunk", "attention_chunk_size"),
}

BOTH_DIRECTIONS = "it attends in both directions, so it is no causal decoder"

ATTENTION_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")

# functions whose mere call says that the model is not a plain causal decoder
REFUSED: dict[str, str] = {
    "create_bidirectional_mask": BOTH_DIRECTIONS,
    "create_bidirectional_sliding_window_mask": BOTH_DIRECTIONS,
    "create_recurrent_attention_mask": STATE,
}

# arguments that change a mask's meaning; anything but None is refused
OVERLAYS = {
    "or_mask_function": "it shows tokens to each other beyond a plain mask",
    "and_mask_function": "it hides tokens from each other beyond a plain mask",
    "block_sequence_ids": "the tokens of an image in it see each other in both directions",
}


def _capturing(name: str, who: str) -> MaskFunction:
    kind, attribute = MEANINGS[name]

    def capture(config: Any, inputs_embeds: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        for overlay, reason in OVERLAYS.items():
            if kwargs.get(overlay) is not None:
                raise TraceError(f"{who} cannot be traced: {reason}.")
        if not getattr(config, "is_causal", True):
            raise TraceError(f"{who} cannot be traced: {BOTH_DIRECTIONS}.")
        size = None if attribute is None else getattr(config, attribute, None)
        if attribute is not None and size is None:
            raise TraceError(f"{who} cannot be traced: it calls {name} and its config has no {attribute}.")
        mask: torch.Tensor = torch.ops.optpipe.mask(inputs_embeds, kind=kind, size=size)
        return mask

    return capture


def _refusing(name: str, who: str, stateless: bool) -> Callable[..., None]:
    def refuse(*args: Any, **kwargs: Any) -> None:
        if "encoder_hidden_states" in kwargs and kwargs["encoder_hidden_states"] is None:
            return  # a decoder that could look at an encoder, and has none
        if stateless and REFUSED[name] == STATE:
            return  # a hybrid whose layers are all attention
        raise TraceError(f"{who} cannot be traced: {REFUSED[name]}.")

    return refuse


def _is_stateless(model: nn.Module) -> bool:
    """Whether every layer is attention by its config, and no module looks like it keeps a state."""
    kinds = getattr(getattr(model, "config", None), "layer_types", None) or ()
    return len(kinds) > 0 and all(kind in ATTENTION_LAYERS for kind in kinds) and not has_state(model)


@contextlib.contextmanager
def captured_masks(model: nn.Module) -> Iterator[None]:
    """Replace the mask functions in every module that a part of ``model`` was defined in."""
    import transformers.masking_utils

    who = type(model).__name__
    replacements: dict[str, Callable[..., Any]] = {name: _capturing(name, who) for name in MEANINGS}
    replacements |= {name: _refusing(name, who, _is_stateless(model)) for name in REFUSED}
    homes = {sys.modules[type(part).__module__] for part in model.modules()} | {transformers.masking_utils}
    patterns = transformers.masking_utils.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING
    saved_patterns = dict(patterns)
    saved: list[tuple[Any, str, Any]] = []
    try:
        for home in homes:
            for name, function in replacements.items():
                if hasattr(home, name):
                    saved.append((home, name, getattr(home, name)))
                    setattr(home, name, function)
        named = {kind: getattr(function, "__name__", "") for kind, function in saved_patterns.items()}
        patterns.update({kind: replacements[name] for kind, name in named.items() if name in replacements})
        yield
    finally:
        patterns.update(saved_patterns)
        for home, name, function in saved:
            setattr(home, name, function)
