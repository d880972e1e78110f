import random

import pytest

from optpipe.errors import RequestError
from optpipe_runtime.speculation import Ask, DraftProposer, check_vocabularies

from ..tape import TapeExecutor


def text(length, seed=0):
    random_ = random.Random(seed)
    return [random_.randrange(64) for _ in range(length)]


def make(executor=None, **options):
    return DraftProposer(executor or TapeExecutor(), **{"vocab_size": 64, "num_blocks": 64, **options})


def test_drafts_what_the_model_would_say_for_all_at_once():
    executor = TapeExecutor()
    proposer = make(executor)
    texts = [text(length, seed=length) for length in (1, 9, 4, 17)]
    limits = [4, 1, 3, 2]
    asks = [Ask(i, it, limit) for i, (it, limit) in enumerate(zip(texts, limits, strict=True))]
    expected = [executor.continued(it, limit) for it, limit in zip(texts, limits, strict=True)]
    assert proposer.propose(asks) == expected
    assert len(executor.steps) == max(limits)
    assert [len(step.context_lens) for step in executor.steps] == [4, 3, 2, 1]


def test_the_cache_follows_the_text_whatever_was_kept():
    """The tape fails when a slot that a row reads was not written for that text."""
    executor, random_ = TapeExecutor(), random.Random(1)
    proposer = make(executor, num_blocks=400)
    texts = [text(5, seed=i) for i in range(4)]
    for _ in range(30):
        asks = [Ask(i, it, random_.randint(1, 5)) for i, it in enumerate(texts) if random_.random() < 0.8]
        before = len(executor.steps)
        drafts = proposer.propose(asks)
        for ask, draft in zip(asks, drafts, strict=True):
            assert draft == executor.continued(ask.tokens, ask.limit)
            kept = random_.randint(0, len(draft))
            # Not every draft that was kept here was run there, and steps without drafts come between.
            others = [random_.randrange(64) for _ in range(random_.randint(1, 4))]
            texts[ask.sequence_id] += [*draft[:kept], *others]
        assert len(executor.steps) - before <= 5
    for i in range(4):
        proposer.finish(i)
        proposer.finish(i)
    assert proposer.free_blocks == 400


def test_accepted_drafts_are_not_computed_again():
    executor = TapeExecutor()
    proposer = make(executor)
    tokens = text(10)
    draft = proposer.propose([Ask(0, tokens, 4)])[0]
    tokens += [*draft, 7]
    proposer.propose([Ask(0, tokens, 1)])
    assert executor.steps[-1].token_ids.tolist() == [draft[3], 7]


def test_a_long_prompt_is_caught_up_with_over_several_asks():
    executor = TapeExecutor()
    proposer = make(executor, max_tokens=16)
    long, short = text(40), text(3, seed=1)
    found = [proposer.propose([Ask(0, short, 1), Ask(1, long, 2)]) for _ in range(3)]
    assert [it[0] for it in found] == [executor.continued(short, 1)] * 3
    assert [it[1] for it in found] == [[], [], executor.continued(long, 2)]
    assert max(len(step.token_ids) for step in executor.steps) <= 16


def test_too_few_blocks_go_to_those_asked_about_last():
    proposer = make(num_blocks=8)  # 32 tokens
    first, second = text(20), text(20, seed=1)
    assert proposer.propose([Ask(0, first, 2)])[0]
    assert proposer.propose([Ask(1, second, 2)])[0]  # takes the first one's
    both = proposer.propose([Ask(0, first, 2), Ask(1, second, 2)])
    assert sorted(map(len, both)) == [0, 2]
    assert proposer.propose([Ask(2, text(40), 2)]) == [[]]  # never fits
    for i in range(3):
        proposer.finish(i)
    assert proposer.free_blocks == 8


def test_stops_at_the_context_of_the_draft_model():
    proposer = make(context=12)
    assert len(proposer.propose([Ask(0, text(8), 4)])[0]) == 4
    assert proposer.propose([Ask(1, text(9), 4)]) == [[]]


def test_ids_that_only_padding_has_are_not_drafted():
    executor = TapeExecutor(vocab_size=64)
    tokens = next(it for seed in range(99) if max(executor.continued(it := text(6, seed), 4)) >= 60)
    expected = executor.continued(tokens, 4)
    cut = next(i for i, token in enumerate(expected) if token >= 60)
    assert make(executor, vocab_size=60).propose([Ask(0, tokens, 4)]) == [expected[:cut]]


def test_an_artifact_without_a_cache_is_refused():
    executor = TapeExecutor()
    executor.cache_spec = None
    with pytest.raises(RequestError, match="has no cache"):
        make(executor)


def test_vocabularies_must_be_equal():
    check_vocabularies({"a": 0, "b": 1}, {"b": 1, "a": 0})
    with pytest.raises(
        RequestError, match=r"\(3 tokens\) is not that of the model \(2 tokens\): 3 entries"
    ) as error:
        check_vocabularies({"a": 0, "b": 1}, {"a": 0, "b": 2, "c": 1})
    assert error.value.hint
