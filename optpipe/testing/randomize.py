"""Random weights that make a tiny model worth comparing.

A freshly initialized transformer is nearly the identity: biases are zero, norm weights are one, the scores
of attention are so small that every mask looks alike. A wrong window or a forgotten bias then hides below
the noise. Here every parameter gets values of the size that a trained model has, and the output layer is
scaled until the logits have a standard deviation near one, so that one tolerance fits all models.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_STD = (0.5, 2.0)  # what counts as "near one"
_NUDGE = 0.25  # added to one-dimensional parameters (norm weights, biases, sinks), around their initial value
_EXPERT_DIMENSIONS = 3  # [experts, out, in] or [experts, in, out]: both tiny sizes are near each other


def randomize(model: PreTrainedModel, seed: int) -> None:
    """Fill every parameter of ``model`` in place. The same seed and names give the same values.

    Matrices get a standard deviation of 1/sqrt(fan-in), embeddings 1/sqrt(width) (so that a tied head gives
    logits near one), and vectors are moved off their initial value. Each parameter has a generator of its
    own, keyed by its name, so that adding a layer leaves the others as they were.
    """
    from transformers.pytorch_utils import Conv1D

    input_major = {id(m.weight) for m in model.modules() if isinstance(m, Conv1D)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(seed * 7919 + zlib.crc32(name.encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise / math.sqrt(_fan_in(parameter, id(parameter) in input_major)))
            else:
                start = torch.nan_to_num(parameter.float(), nan=0.0, posinf=0.0, neginf=0.0)
                parameter.copy_(start + _NUDGE * noise)


def _fan_in(weight: torch.Tensor, input_major: bool) -> int:
    if input_major:
        return weight.shape[0]
    if weight.ndim == _EXPERT_DIMENSIONS:
        return max(1, min(weight.shape[1:]))
    return max(1, weight.shape[-1])


def scale_logits(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    """Scale the output layer until logits spread like a trained model's; return their spread.

    A head that is tied to the embedding scales it too; models with a norm before the first layer barely
    notice. Three rounds are enough for every model in transformers that can be scaled at all.

    Args:
        tokens: i64[1, T] token ids.
    """
    head = model.get_output_embeddings()
    spread = _spread(model, tokens)
    for _ in range(3):
        if head is None or not math.isfinite(spread) or spread == 0 or LOGIT_STD[0] <= spread <= LOGIT_STD[1]:
            break
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.div_(spread)
        spread = _spread(model, tokens)
    return spread


def _spread(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    with torch.no_grad():
        logits = cast("torch.Tensor", model(input_ids=tokens, use_cache=False).logits)
    return float(logits.float().std())
