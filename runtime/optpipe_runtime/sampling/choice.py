"""The choice of one token from one row: temperature, min-p, top-k, top-p, in this order.

Which way it is found depends on the row and the parameters only, never on other rows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .candidates import UNFOLDED, Folded, checked_peak, scaled
from .mask import Scratch
from .params import SamplingParams
from .weights import Weights

SHORT = 256  # top-p looks among so many first
WIDE = 4096  # a larger top-k is not sorted
SAMPLES = 8192  # values that a wide top-p is guessed from
MARGINS = (0.02, 0.1, 2.0)  # of probability, around the guess; the last takes everything


def likeliest(values: NDArray[np.float32]) -> int:
    """The place of the largest value, the first of several.

    Raises:
        KernelError: a value is NaN or +inf.
        RequestError: all are -inf.
    """
    place = int(values.argmax())  # of a NaN, if there is one
    checked_peak(float(values[place]))
    return place


def choose(values: NDArray[np.float32], params: SamplingParams, uniform: float, scratch: Scratch) -> int:
    """The place of the chosen value.

    Args:
        values: [n] logits after everything but temperature, min-p, top-k and top-p.
        uniform: a random number from 0 up to 1.

    Raises:
        KernelError: a value is NaN or +inf.
        RequestError: all are -inf.
    """
    folded = Folded(values)
    size = len(values)
    count = params.top_k if 0 < params.top_k < size else size
    if size <= UNFOLDED or count <= WIDE:
        return _among(values, folded.top(min(count, size)), params, uniform)
    if count == size and (params.top_p < 1 or params.min_p > 0):
        found = _few(folded, params, uniform, scratch)
        if found is not None:
            return found
    return _wide(folded, count, params, uniform, scratch)


def _among(
    values: NDArray[np.float32],
    order: NDArray[np.int64],
    params: SamplingParams,
    uniform: float,
    total: float | None = None,
) -> int:
    """Choose among few, given likeliest first; ``total`` is the weight of all when these are not all."""
    below = values[order].astype(np.float64) - float(values[order[0]])
    weights = np.exp(below / params.temperature)
    if params.min_p > 0:
        weights = weights[: int(np.count_nonzero(below >= _floor(params)))]
    if params.top_p < 1:
        ends = np.cumsum(weights)
        goal = params.top_p * (ends[-1] if total is None else total)
        weights = weights[: int(np.searchsorted(ends, goal, side="left")) + 1]
    ids = order[: len(weights)]
    by_id = np.argsort(ids)
    running = np.cumsum(weights[by_id])
    place = int(np.searchsorted(running, uniform * running[-1], side="right"))
    return int(ids[by_id[min(place, len(running) - 1)]])


def _few(folded: Folded, params: SamplingParams, uniform: float, scratch: Scratch) -> int | None:
    """Choose among the likeliest when they hold all of top-p or min-p; None when they do not."""
    order = folded.top(SHORT)
    least = float(folded.values[order[-1]])
    if len(order) < SHORT or (params.min_p > 0 and least < folded.peak + _floor(params)):
        return _among(folded.values, order, params, uniform)
    if params.top_p == 1 or params.min_p > 0:
        return None
    total = folded.weigh(params.temperature, scratch.weights).total
    below = folded.values[order].astype(np.float64) - folded.peak
    if np.exp(below / params.temperature).sum() < params.top_p * total:
        return None
    return _among(folded.values, order, params, uniform, total)


def _wide(folded: Folded, count: int, params: SamplingParams, uniform: float, scratch: Scratch) -> int:
    """Choose among many: weigh the whole row and clear what is left out."""
    values = folded.values
    flags = scratch.flags[: len(values)]
    weights = scaled(values, folded.peak, params.temperature, scratch.weights[: len(values)])
    floor = folded.peak + _floor(params)
    if count < len(values):
        least = folded.threshold(count)
        if least >= floor:
            floor = least
            equal = np.flatnonzero(values == least)
            over = int(np.count_nonzero(values > least))
            weights[equal[count - over :]] = 0
    if floor > -np.inf:
        np.greater_equal(values, floor, out=flags)
        np.multiply(weights, flags, out=weights)
    whole = Weights(weights)
    return (whole if params.top_p == 1 else _nucleus(folded, whole, floor, params, scratch)).pick(uniform)


def _nucleus(
    folded: Folded, whole: Weights, floor: float, params: SamplingParams, scratch: Scratch
) -> Weights:
    """The weights of the likeliest tokens until their sum reaches top-p; 0 for the others."""
    values, flags = folded.values, scratch.flags[: len(folded.values)]
    kept = scratch.masked[: len(values)]
    goal = params.top_p * whole.total
    for margin in MARGINS:
        low, high = _bracket(folded, floor, params, margin)
        np.greater(values, high, out=flags)
        np.multiply(whole.values, flags, out=kept)
        sure = Weights(kept).total if high < np.inf else 0.0
        if sure >= goal:
            continue
        ids = np.flatnonzero((values >= low) & ~flags)
        least, equal = _crossing(values[ids], sure, goal, folded.peak, params.temperature)
        if least is None and margin != MARGINS[-1]:
            continue
        if least is not None:
            ties = ids[values[ids] == least][:equal]
            ids = np.concatenate([ids[values[ids] > least], ties])
        kept[ids] = whole.values[ids]
        return Weights(kept)
    raise AssertionError(f"{goal = } lies beyond {whole.total = }")


def _bracket(folded: Folded, floor: float, params: SamplingParams, margin: float) -> tuple[float, float]:
    """Values between which the least token of top-p probably lies, guessed from some of the row."""
    some = np.sort(folded.values[:: max(1, len(folded.values) // SAMPLES)])[::-1]
    some = some[some >= floor]
    if not len(some):
        return -np.inf, np.inf
    running = np.cumsum(scaled(some, folded.peak, params.temperature, np.empty_like(some)), dtype=np.float64)
    first = int(np.searchsorted(running, (params.top_p - margin) * running[-1]))
    last = int(np.searchsorted(running, (params.top_p + margin) * running[-1]))
    high = float(some[first]) if params.top_p > margin else np.inf
    return (float(some[last]) if last < len(some) else -np.inf), high


def _crossing(
    values: NDArray[np.float32], sure: float, goal: float, peak: float, temperature: float
) -> tuple[float | None, int]:
    """The value at which the running sum, from ``sure`` on, reaches ``goal``, and how many equals it takes.

    Returns:
        None and 0 when the sum stays below ``goal``.
    """
    order = np.sort(values)[::-1]
    running = np.cumsum(scaled(order, peak, temperature, np.empty_like(order)), dtype=np.float64)
    place = int(np.searchsorted(running, goal - sure, side="left"))
    if place >= len(order):
        return None, 0
    least = order[place]
    return float(least), place - int(np.count_nonzero(order > least)) + 1


def _floor(params: SamplingParams) -> float:
    """How far below the peak min-p keeps values."""
    return params.temperature * math.log(params.min_p) if params.min_p > 0 else -math.inf
