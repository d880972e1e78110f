"""One server a module, over a tape that takes a millisecond a step."""

from collections.abc import Iterator

import pytest

from .kit import LetterExecutor, Served, serve

STEP = 0.001  # seconds


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(LetterExecutor(cost=lambda step: STEP)) as it:
        yield it
