"""Sampling written down slowly and obviously, in float64, to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from optpipe_runtime.sampling import SamplingParams

NEAR = 1e-5  # float32 weights may move a boundary by this fraction of the whole


def edited(
    row: NDArray[np.float32],
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    ends: Sequence[int],
    bad_words: Sequence[tuple[int, ...]] = (),
) -> NDArray[np.float32]:
    """The logits after allowed tokens, bad words, min_tokens, bias and penalties."""
    found = [float(it) for it in row]
    for token in range(len(found)):
        if params.allowed_token_ids is not None and token not in params.allowed_token_ids:
            found[token] = -math.inf
        if len(output) < params.min_tokens and token in ends:
            found[token] = -math.inf
        for word in bad_words:
            beginning = word[:-1]
            if word[-1] == token and tuple(output[len(output) - len(beginning) :]) == beginning:
                found[token] = -math.inf
        found[token] += (params.logit_bias or {}).get(token, 0.0)
        if token in prompt or token in output:
            found[token] *= params.repetition_penalty ** (-1 if found[token] > 0 else 1)
        found[token] -= params.frequency_penalty * list(output).count(token)
        found[token] -= params.presence_penalty * (token in output)
    return np.asarray(found, dtype=np.float32)


def ordered(row: NDArray[np.float32]) -> NDArray[np.int64]:
    """Ids of tokens over -inf, likeliest first, lower ids first among equals."""
    order = np.lexsort((np.arange(len(row)), -row.astype(np.float64)))
    return order[row[order] > -np.inf]


def kept(row: NDArray[np.float32], params: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids after min-p and top-k, likeliest first, and their weights."""
    order = ordered(row)
    logits = row[order].astype(np.float64)
    weights = np.exp((logits - logits[0]) / params.temperature)
    count = int((weights >= params.min_p * (1 - 1e-12)).sum())
    count = min(count, params.top_k or count)
    return order[:count], weights[:count]


def probabilities(row: NDArray[np.float32], params: SamplingParams) -> NDArray[np.float64]:
    """[V] with what probability each token comes."""
    order, weights = kept(row, params)
    before = np.cumsum(weights) - weights
    inside = before < params.top_p * weights.sum() if params.top_p < 1 else np.ones(len(order), bool)
    found = np.zeros(len(row))
    found[order[inside]] = weights[inside] / weights[inside].sum()
    return found


def choice(
    row: NDArray[np.float32], params: SamplingParams, draws: Callable[[int], float], *, slack: float = 0.0
) -> int:
    """Draw by id among the tokens before the refused one, until one is inside top-p."""
    order, weights = kept(row, params)
    inside = np.cumsum(weights) - weights < (params.top_p + slack) * weights.sum()
    inside[0] = True
    count = len(order)
    for attempt in range(1000):
        by_id = np.argsort(order[:count])
        running = np.cumsum(weights[:count][by_id])
        number = min(max(draws(attempt) + slack, 0.0), 1 - 2**-53)
        rank = int(by_id[min(int((running <= number * running[-1]).sum()), count - 1)])
        if params.top_p == 1 or inside[rank]:
            return int(order[rank])
        count = rank
    raise AssertionError("a thousand tokens were refused")


def acceptable(row: NDArray[np.float32], params: SamplingParams, draws: Callable[[int], float]) -> set[int]:
    """The choice, and what it would be if rounding moved every boundary a little."""
    return {choice(row, params, draws, slack=slack) for slack in (-NEAR, 0.0, NEAR)}


def chi_square_limit(freedom: int) -> float:
    """What chi-square passes once in a million; Wilson and Hilferty's approximation."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 4.753 * math.sqrt(part)) ** 3


def chi_square(counts: NDArray[np.int64], expected: NDArray[np.float64]) -> tuple[float, int]:
    """The statistic over tokens expected at least 5 times, the others together, and its freedom."""
    assert not counts[expected == 0].any(), "a token came that has no probability"
    often = expected >= 5
    statistic = float((((counts - expected) ** 2)[often] / expected[often]).sum())
    rest = float(expected[~often].sum())
    if rest >= 5:
        statistic += (float(counts[~often].sum()) - rest) ** 2 / rest
    return statistic, max(1, int(often.sum()) - (rest < 5))
