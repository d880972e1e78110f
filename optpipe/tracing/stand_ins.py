"""Parts of models whose code runs over lists that depend on the data, and code that says the same without.

For the length of a trace they take the place of the modules' own. The model itself, which the traced graph is
held against, keeps its own code: a stand-in that says something else is an error of the trace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from ..dialect.moe import Gating
from .experts import emit, gating_of_activation


def longcat_experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """LongCat Flash: ids past the routed experts hand their token on as it is.

    Args:
        hidden_states: [T, K]; top_k_index: [T, S] int64; top_k_weights: [T, S].

    Returns:
        [T, K].
    """
    gating: Gating = module._optpipe_gating
    routed = emit(gating, hidden_states, top_k_index, top_k_weights, module.gate_up_proj, module.down_proj)
    unchanged = (top_k_weights * (top_k_index >= module.num_routed_experts)).sum(-1, keepdim=True)
    out: torch.Tensor = routed + hidden_states * unchanged.to(hidden_states.dtype)
    return out


def xmod_adapter(module: Any, lang_ids: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
    """X-MOD without a language in its input: the adapter of the config's default language, for every token.

    Args:
        hidden_states: [1, T, K].

    Returns:
        [1, T, K].
    """
    reused = module.LayerNorm if module.adapter_reuse_layer_norm else nn.Identity()
    normed = (module.adapter_layer_norm or reused)(hidden_states)
    adapted = module.adapter_modules[module._optpipe_language](normed)
    out: torch.Tensor = adapted + (normed if module.ln_before_adapter else hidden_states)
    return out


@contextlib.contextmanager
def standing_in(model: nn.Module) -> Iterator[None]:
    """Within, modules of the kinds above run the code above."""
    replaced: list[tuple[nn.Module, str]] = []

    def replace(module: nn.Module, method: str, stand_in: Callable[..., torch.Tensor]) -> None:
        setattr(module, method, partial(stand_in, module))
        replaced.append((module, method))

    module: Any
    for module in model.modules():
        match type(module).__name__:
            case "LongcatFlashExperts" if module.gate_up_proj is not None:
                module._optpipe_gating = gating_of_activation(module.act_fn)
                if module._optpipe_gating is not None:
                    replace(module, "forward", longcat_experts)
            case "XmodOutput":
                module._optpipe_language = getattr(model.config, "default_language", None)
                if module._optpipe_language is not None:
                    replace(module, "lang_adapter", xmod_adapter)
    try:
        yield
    finally:
        for module, method in replaced:
            delattr(module, method)
