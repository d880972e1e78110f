"""The rules of requests as an executor takes them do what the sampler does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from optpipe.errors import RequestError
from optpipe_runtime.sampling import RowState, SamplingParams, draws_of
from optpipe_runtime.sampling.mask import Scratch

from ..tape import edited

SIZE = 1003  # tokens, of no whole word
PROMPT, OUTPUT = [5, 6, 7, 900, 5], [7, 8, 8, 8, 9]


class Fixed:
    """A grammar that always allows the same tokens."""

    stopped = False

    def __init__(self, allowed: list[int], fails: bool = False) -> None:
        flags = np.zeros(32 * 40, np.bool_)  # the tokenizer has more tokens than the model
        flags[allowed] = True
        self._bits, self._fails = np.packbits(flags, bitorder="little").view(np.uint32), fails

    def bits(self) -> NDArray[np.uint32]:
        if self._fails:
            raise RequestError("too complex")
        return self._bits

    def advance(self, token: int) -> None:
        pass


def state(grammar: Any = None, words: tuple[tuple[int, ...], ...] = (), **fields: Any) -> RowState:
    made = RowState(
        SamplingParams(**fields), PROMPT, vocab_size=SIZE, eos=[0], seed=3, grammar=grammar, bad_words=words
    )
    for token in OUTPUT:
        made.advance(token)
    return made


STATES: dict[str, Any] = {
    "nothing": lambda: state(),
    "penalties": lambda: state(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.37),
    "frequency": lambda: state(frequency_penalty=-0.1),
    "bias": lambda: state(logit_bias={3: 5.5, 8: -2.0}),
    "all": lambda: state(
        logit_bias={8: 4.0, 7: -1.0, 33: 9.0}, presence_penalty=1.0, min_tokens=9, words=((9,), (8, 9, 33))
    ),
    "allowed": lambda: state(allowed_token_ids=(1, 31, 32, 1002), logit_bias={1: 1.0}),
    "grammar": lambda: state(Fixed(list(range(0, 1100, 7))), repetition_penalty=0.5),
    "grammar and allowed": lambda: state(Fixed([4, 5, 64]), allowed_token_ids=(5, 64, 65)),
}


def by_sampler(one: RowState, row: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sampler's row with every token in its place."""
    found = one.edited(row, Scratch(SIZE))
    if found.ids is None:
        return found.values.copy()
    whole = np.full(SIZE, -np.inf, np.float32)
    whole[found.ids] = found.values
    return whole


@pytest.mark.parametrize("names", [[it] for it in STATES] + [list(STATES)], ids=" ".join)
def test_edits_are_the_samplers(names: list[str]) -> None:
    states = [STATES[it]() for it in names]
    rows = (np.random.default_rng(0).normal(size=(len(states), SIZE)) * 3).astype(np.float32)
    draws = draws_of(states)
    assert draws is not None
    assert (draws.edits is None) == (names == ["nothing"])
    found = rows if draws.edits is None else edited(rows, draws.edits)
    expected = np.stack([by_sampler(one, row) for one, row in zip(states, rows, strict=True)])
    np.testing.assert_array_equal(found, expected)


def test_the_step_after_one_under_way_has_what_its_token_does_not_change() -> None:
    ahead = {name: draws_of([make()], ahead=True) for name, make in STATES.items()}
    assert [name for name, draws in ahead.items() if draws is not None] == ["nothing", "bias", "allowed"]
    short = [draws_of([state(min_tokens=6)], ahead=it) for it in (False, True)]
    assert short[0] is not None and short[0].edits is not None and short[0].edits.tokens.tolist() == [0]
    assert short[1] is not None and short[1].edits is None


def test_a_grammar_that_may_win_over_min_tokens_is_the_hosts() -> None:
    assert draws_of([state(Fixed([4]), min_tokens=5)]) is not None
    assert draws_of([state(Fixed([4]), min_tokens=6)]) is None


def test_a_grammar_that_fails_is_the_hosts() -> None:
    assert draws_of([state(), state(Fixed([4], fails=True))]) is None


def test_log_probabilities_are_of_as_many_tokens_as_the_most_wanted() -> None:
    tops = [
        None if draws is None else draws.top
        for draws in (
            draws_of([state(), state()]),
            draws_of([state(logprobs=0), state()]),
            draws_of([state(logprobs=0), state(logprobs=7)]),
        )
    ]
    assert tops == [None, 0, 7]
