"""The choice of one token from one row: temperature, min-p, top-k, top-p, in this order.

Min-p and top-k leave tokens out before the choice. Top-p does not need its set: a token drawn from all is in
the set when those before it weigh less than p, and the choice among the set is then as if it alone had been
there. A token that is not in the set is refused with all behind it, and another is drawn. This is exact, and
spares sorting the row.

"Before" means likelier, or as likely with a lower id. Which way a token is found depends on its row and the
parameters only, never on other rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .candidates import Folded, checked_peak, scaled
from .mask import Scratch
from .params import SamplingParams
from .weights import Weights

SORTED = 4096  # up to this many candidates are sorted, and weighed in float64

Draws = Callable[[int], float]  # the random number of each attempt, from 0 up to 1


def likeliest(values: NDArray[np.float32]) -> int:
    """The place of the largest value, the first of several.

    Raises:
        KernelError: a value is NaN or +inf.
        RequestError: all are -inf.
    """
    place = int(values.argmax())  # of a NaN, if there is one
    checked_peak(float(values[place]))
    return place


def choose(values: NDArray[np.float32], params: SamplingParams, draws: Draws, scratch: Scratch) -> int:
    """The place of the chosen value.

    Args:
        values: [n] logits after everything but temperature, min-p, top-k and top-p.

    Raises:
        KernelError: a value is NaN or +inf.
        RequestError: all are -inf.
    """
    count = params.top_k if 0 < params.top_k < len(values) else len(values)
    if count < len(values) and count <= SORTED:
        return _among_few(values, count, params, draws)
    return _among_many(values, count, params, draws, scratch)


def _among_few(values: NDArray[np.float32], count: int, params: SamplingParams, draws: Draws) -> int:
    """Sort the ``count`` largest, and weigh them in float64."""
    order = Folded(values).top(count)
    few = values[order].astype(np.float64)
    few -= few[0]
    if params.min_p > 0:
        few = few[few >= _floor(params)]
    weights = np.exp(few / params.temperature)
    goal = params.top_p * float(weights.sum())
    left, attempt = len(weights), 0
    while True:
        by_id = order[:left].argsort()
        running = weights[:left][by_id].cumsum()
        place = int(running.searchsorted(draws(attempt) * running[-1], side="right"))
        rank = int(by_id[min(place, left - 1)])
        if params.top_p == 1 or float(weights[:rank].sum()) < goal:
            return int(order[rank])
        left, attempt = rank, attempt + 1


def _among_many(
    values: NDArray[np.float32], count: int, params: SamplingParams, draws: Draws, scratch: Scratch
) -> int:
    """Weigh the whole row; what is left out weighs nothing."""
    size = len(values)
    peak = checked_peak(float(values.max()))
    weights = scaled(values, peak, params.temperature, scratch.weights[:size])
    floor = peak + _floor(params)
    if count < size:
        least = float(np.partition(values, size - count)[size - count])
        surplus = int(np.count_nonzero(values >= least)) - count
        if surplus:
            weights[np.flatnonzero(values == least)[-surplus:]] = 0
        floor = max(floor, least)
    if floor > -math.inf:
        np.multiply(weights, np.greater_equal(values, floor, out=scratch.flags[:size]), out=weights)
    return _draw(values, Weights(weights), params.top_p, draws, scratch)


def _draw(values: NDArray[np.float32], weights: Weights, top_p: float, draws: Draws, scratch: Scratch) -> int:
    """Draw until a token is among the likeliest whose weights reach ``top_p``.

    Args:
        values: [n], by which tokens are ordered.
        weights: of the values, in ``scratch.weights``.
    """
    place = weights.pick(draws(0))
    if top_p == 1:
        return place
    goal, attempt = top_p * weights.total, 0
    flags, room = scratch.flags[: len(values)], scratch.masked[: len(values)]
    while True:
        value = values[place]
        np.multiply(weights.values, np.greater(values, value, out=flags), out=room)
        before = Weights(room)
        equal = np.equal(values[:place], value, out=flags[:place]).nonzero()[0]
        if before.total + float(weights.values[equal].sum(dtype=np.float64)) < goal:
            return place
        if len(equal):
            room[equal] = weights.values[equal]
            before = Weights(room)
        weights, room = before, weights.values
        attempt += 1
        place = weights.pick(draws(attempt))


def _floor(params: SamplingParams) -> float:
    """How far below the peak min-p keeps values."""
    return params.temperature * math.log(params.min_p) if params.min_p > 0 else -math.inf
