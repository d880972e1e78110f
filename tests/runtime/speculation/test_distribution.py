"""Sampled text keeps its distribution under speculation: counts against the model's probabilities."""

import math

import numpy as np
import pytest

from optpipe_runtime.sampling import SamplingParams
from optpipe_runtime.speculation import FixedController, NgramProposer, Speculator, SuffixProposer

from ..tape import TapeExecutor
from .scripted import ScriptedProposer

SIZE = 8
TEXTS, LENGTH = 64, 90


def likeliest(executor):
    """Greedy continuations: drafts that are kept as often as any can be."""
    return lambda tokens, count: executor.continued(tokens, count)


PROPOSERS = {
    "ngram": lambda executor: NgramProposer(),
    "suffix": lambda executor: SuffixProposer(),
    "likeliest": lambda executor: ScriptedProposer("right", likeliest(executor), SIZE),
    "often wrong": lambda executor: ScriptedProposer("mixed", likeliest(executor), SIZE),
}


PLAIN = ({"temperature": 1.0}, SIZE)
TOP_K = ({"temperature": 0.7, "top_k": 5}, 5)


@pytest.mark.parametrize(
    ("name", "settings", "keeps"), [*((name, *PLAIN) for name in PROPOSERS), ("often wrong", *TOP_K)]
)
def test_transitions_of_a_markov_chain(make_engine, name, settings, keeps):
    executor = TapeExecutor(SIZE, memory=1, sharpness=1.5)
    speculator = Speculator(PROPOSERS[name](executor), FixedController(max_drafts=3))
    engine = make_engine(executor, speculator, num_blocks=4096, max_num_seqs=TEXTS)
    params = [SamplingParams(seed=i, max_tokens=LENGTH, **settings) for i in range(TEXTS)]
    outputs = engine.generate([[i % SIZE] for i in range(TEXTS)], params)
    counts = np.zeros((SIZE, SIZE))
    for i, out in enumerate(outputs):
        text = [i % SIZE, *out.token_ids]
        np.add.at(counts, (text[:-1], text[1:]), 1)
    expected = np.stack(
        [probabilities(executor.row([token]), keeps, settings["temperature"]) for token in range(SIZE)]
    )
    assert (counts[expected == 0] == 0).all()
    expected *= counts.sum(1, keepdims=True)
    used = expected > 0
    statistic = ((counts[used] - expected[used]) ** 2 / expected[used]).sum()
    assert expected[used].min() > 5
    assert statistic < chi_square_limit(SIZE * (keeps - 1)), f"{statistic = }"
    proposed, accepted = sum(engine.stats().draft_tokens), sum(engine.stats().accepted_tokens)
    assert 0.05 < accepted / proposed < 0.8
    assert accepted > 300


def probabilities(row, keeps, temperature):
    row = np.where(row >= np.sort(row)[-keeps], row, -np.inf) / temperature
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def chi_square_limit(freedom):
    """The value that one chance run in 1,000 exceeds (Wilson and Hilferty's approximation)."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 3.09 * math.sqrt(part)) ** 3


def test_keeping_every_draft_would_be_noticed():
    """The statistic tells a chain whose likeliest token comes 10 % too often from the true one."""
    executor = TapeExecutor(SIZE, memory=1, sharpness=1.5)
    rows = np.stack([probabilities(executor.row([token]), SIZE, 1.0) for token in range(SIZE)])
    wrong = rows * 0.9
    wrong[np.arange(SIZE), rows.argmax(1)] += 0.1
    each = TEXTS * LENGTH / SIZE
    assert ((wrong - rows) ** 2 / rows).sum() * each > chi_square_limit(SIZE * (SIZE - 1))
