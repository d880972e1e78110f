"""Artifacts without a cache."""

import numpy as np
import pytest

from optpipe.errors import CapacityError
from optpipe_runtime.sampling import SamplingParams

from ..tape import TapeExecutor

PARAMS = SamplingParams(temperature=0, max_tokens=12, logprobs=1)


class Dense:
    """An executor that takes whole sequences only."""

    cache_spec = None
    batch_invariant = True

    def __init__(self):
        self.tape = TapeExecutor()
        self.vocab_size = self.tape.vocab_size

    def memory(self, *, tokens, rows):
        return self.tape.memory(tokens=tokens, rows=rows)

    def logits(self, token_ids, rows=None):
        assert token_ids.dtype == np.int64
        return self.tape.logits(token_ids, rows)


def test_the_answers_are_those_of_a_cache(make_engine):
    asked = [[i] * (3 + 7 * i) for i in range(1, 8)]
    outputs = make_engine(Dense(), max_num_batched_tokens=16, max_num_seqs=4).generate(asked, PARAMS)
    expected = make_engine().generate(asked, PARAMS)
    assert [it.token_ids for it in outputs] == [it.token_ids for it in expected]
    assert [it.completions[0].logprobs for it in outputs] == [it.completions[0].logprobs for it in expected]


def test_memory_is_worked_out_for_it_too(make_engine):
    engine = make_engine(Dense(), num_blocks=None, max_context=64)
    assert engine.memory.num_blocks == 64 * 5
    assert engine.generate([[1]], PARAMS)[0].usage.completion_tokens == 12


def test_it_has_no_choice_of_precision(make_engine):
    with pytest.raises(CapacityError, match="bf16"):
        make_engine(Dense(), kv_dtype="bf16")
