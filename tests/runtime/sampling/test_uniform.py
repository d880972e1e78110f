"""Random numbers of a seed and a place."""

from __future__ import annotations

import numpy as np

from optpipe_runtime.sampling import child_seed, uniform

from .reference import chi_square, chi_square_limit


def test_numbers_are_even_along_tokens_seeds_and_attempts() -> None:
    for numbers in (
        [uniform(7, i) for i in range(20_000)],
        [uniform(i, 0) for i in range(20_000)],
        [uniform(7, 0, i) for i in range(20_000)],
    ):
        counts = np.bincount((np.asarray(numbers) * 100).astype(int), minlength=100)
        statistic, freedom = chi_square(counts, np.full(100, 200.0))
        assert statistic < chi_square_limit(freedom)
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.04


def test_numbers_are_pinned() -> None:
    """A text by a seed stays the same from version to version."""
    assert uniform(0, 0) == 0.026837561136471177
    assert uniform(-1, 3) == uniform(2**64 - 1, 3)


def test_children_have_seeds_of_their_own_and_the_first_keeps_its_parents() -> None:
    seeds = [child_seed(9, i) for i in range(100)]
    assert seeds[0] == 9 and len(set(seeds)) == 100
    assert child_seed(9, 1) != child_seed(10, 1)
