"""One row at a time: the fast choice is the slow one, at awkward shapes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from optpipe.errors import KernelError, RequestError
from optpipe_runtime.sampling import SamplingParams, uniform
from optpipe_runtime.sampling.choice import choose, likeliest
from optpipe_runtime.sampling.mask import Scratch

from . import reference

ROWS = ("normal", "peaked", "flat", "ties", "masked", "one")
PARAMS = (
    {},
    {"temperature": 0.3},
    {"temperature": 1000.0},
    {"temperature": 1e-5},
    {"top_k": 1 << 20},
    {"top_k": 3},
    {"top_k": 50, "top_p": 0.95, "temperature": 0.8},
    {"top_k": 40, "min_p": 0.3},
    {"top_k": 40, "min_p": 0.05, "top_p": 0.7},
    {"top_k": 6000, "top_p": 0.9},
    {"top_k": 6000, "temperature": 2.0},
    {"top_p": 0.9},
    {"top_p": 0.5, "temperature": 1.5},
    {"top_p": 0.001},
    {"top_p": 1e-300},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"min_p": 0.02, "top_p": 0.8},
    {"min_p": 1e-3, "top_k": 5000, "top_p": 0.99, "temperature": 1.2},
)


def logits(kind: str, size: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(size)
    row = rng.standard_normal(size).astype(np.float32)
    if kind == "peaked":
        row *= 8
    if kind == "flat":
        row[:] = 1.25
    if kind == "ties":
        row = np.round(row)
    if kind == "masked":
        row[rng.random(size) < 0.7] = -np.inf
        row[size // 2] = 0
    if kind == "one":
        row[:] = -np.inf
        row[size - 1] = -3.0
    return row


@pytest.mark.parametrize("size", [1, 7, 2049, 5001, 49_152])
@pytest.mark.parametrize("kind", ROWS)
def test_chooses_what_the_slow_way_chooses(kind: str, size: int) -> None:
    row, scratch = logits(kind, size), Scratch(size)
    for number, fields in enumerate(PARAMS):
        params = SamplingParams(**fields)
        for index in range(2):
            draws = partial(uniform, 100 * number + index, index)
            assert choose(row, params, draws, scratch) in reference.acceptable(row, params, draws), fields


@pytest.mark.parametrize("fields", [it for it in PARAMS if it.get("temperature") != 1e-5])
def test_frequencies_converge_to_the_probabilities(fields: dict[str, float]) -> None:
    row, params, scratch = logits("normal", 7001) * 2, SamplingParams(**fields), Scratch(7001)
    counts = np.zeros(7001, dtype=np.int64)
    tries = 3000
    for index in range(tries):
        counts[choose(row, params, partial(uniform, 5, index), scratch)] += 1
    statistic, freedom = reference.chi_square(counts, reference.probabilities(row, params) * tries)
    assert statistic < reference.chi_square_limit(freedom)


def test_the_first_of_equals_is_likeliest() -> None:
    assert likeliest(np.asarray([0, 2, 1, 2], dtype=np.float32)) == 1


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("fields", PARAMS)
def test_extreme_numbers_choose_tokens_that_may_come(fields: dict[str, float], extreme: float) -> None:
    row, params = logits("masked", 5001), SamplingParams(**fields)
    token = choose(row, params, lambda attempt: extreme, Scratch(5001))
    assert reference.probabilities(row, params)[token] > 0 or fields.get("temperature") == 1e-5


@pytest.mark.parametrize("size", [7, 9000])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("fields", [{}, {"top_k": 3}, {"top_p": 0.5}])
def test_refuses_logits_that_are_no_numbers(size: int, bad: float, fields: dict[str, float]) -> None:
    row = logits("normal", size)
    row[size // 2] = bad
    with pytest.raises(KernelError, match="not numbers"):
        choose(row, SamplingParams(**fields), lambda attempt: 0.5, Scratch(size))
    with pytest.raises(KernelError, match="not numbers"):
        likeliest(row)


@pytest.mark.parametrize("fields", [{}, {"top_k": 3}, {"top_p": 0.5}])
def test_refuses_a_row_without_a_token(fields: dict[str, float]) -> None:
    row = np.full(9000, -np.inf, dtype=np.float32)
    with pytest.raises(RequestError, match="No token may come"):
        choose(row, SamplingParams(**fields), lambda attempt: 0.5, Scratch(9000))
    with pytest.raises(RequestError, match="No token may come"):
        likeliest(row)


def test_a_vocabulary_of_a_quarter_million() -> None:
    row, scratch = logits("normal", 262_144), Scratch(262_144)
    for fields in ({}, {"top_k": 50, "top_p": 0.95}, {"top_k": 6000}, {"top_p": 0.9}, {"min_p": 0.1}):
        params, draws = SamplingParams(**fields), partial(uniform, 3, 0)
        assert choose(row, params, draws, scratch) in reference.acceptable(row, params, draws), fields
