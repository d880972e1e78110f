"""What an executor needs to draw the tokens of a step itself, with the sampler's own random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from optpipe.errors import KernelError, OptpipeError, RequestError
from optpipe.targets.protocol import NOT_NUMBERS, Draws

from .params import SamplingParams
from .rules import edits_of
from .state import RowState

_LOW = (1 << 64) - 1


def draws_of(states: Sequence[RowState], *, ahead: bool = False) -> Draws | None:
    """How the next token of each sequence is drawn; None where one of them needs the host.

    Args:
        states: one a row of logits.
        ahead: of the token after one that is still under way.
    """
    if not all(state.drawable(ahead) for state in states):
        return None
    try:
        rules = [state.rules(ahead) for state in states]
    except Exception:  # a grammar's: on the host it ends its own sequence, and no other
        return None
    tops = [state.params.logprobs for state in states if state.params.logprobs is not None]
    floats = [_floats(state.params) for state in states]
    integers = [
        (1 if state.params.greedy else state.params.top_k, _signed(state.seed), state.outputs + ahead)
        for state in states
    ]
    return Draws(
        np.array(floats, dtype=np.float64).reshape(-1, 3),
        np.array(integers, dtype=np.int64).reshape(-1, 3),
        edits_of(rules),
        max(tops, default=None),
    )


def refusal(token: int) -> OptpipeError:
    """What it means that an executor drew no token: the sampler's own errors."""
    if token == NOT_NUMBERS:
        return KernelError("The model's logits are not numbers, so no token can be chosen.")
    return RequestError("No token may come next: the rules of the request exclude all.")


def _floats(params: SamplingParams) -> tuple[float, float, float]:
    floor = params.temperature * math.log(params.min_p) if params.min_p > 0 else -math.inf
    return params.temperature, params.top_p, floor


def _signed(seed: int) -> int:
    """The low 64 bits as an int64 has them."""
    low = seed & _LOW
    return low - (low >> 63 << 64)
