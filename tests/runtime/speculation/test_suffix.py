import random

from hypothesis import given, settings
from hypothesis import strategies as st

from optpipe_runtime.speculation import Ask, SuffixProposer
from optpipe_runtime.speculation.suffix import CATCH_UP, SALTS

from .counting import CountingList


def propose(tokens, limit=4, **options):
    return SuffixProposer(**options).propose([Ask(0, tokens, limit)])[0]


def grow(proposer, sequence_id, prompt, output, salt=b""):
    """Generate ``output`` a token at a time, asking each time."""
    text = list(prompt)
    for token in output:
        proposer.propose([Ask(sequence_id, text, 1, len(prompt), salt)])
        text.append(token)
    proposer.propose([Ask(sequence_id, text, 1, len(prompt), salt)])


def test_the_usual_continuation_wins_over_the_newest():
    tokens = [1, 2, 3, 50, 1, 2, 3, 51, 1, 2, 3, 52, 1, 2, 4, 53, 1, 2]
    assert propose(tokens, 1) == [3]


def test_of_equals_the_newest_wins():
    assert propose([1, 2, 3, 50, 1, 2, 4, 51, 1, 2], 1) == [4]


def test_ends_where_it_is_not_sure():
    branches = [token for i in range(8) for token in (1, 2, 3, 4, 60 + i)]
    assert propose([*branches, 1, 2], 8, stretch=9, min_confidence=0.2) == [3, 4]
    assert len(propose([*branches, 1, 2], 8, stretch=9, min_confidence=0.01)) == 8


def test_a_short_match_carries_a_short_draft():
    tokens = [*range(100, 130), 7, 101]
    assert len(propose(tokens, 8, stretch=2)) == 2
    assert len(propose([*tokens, 102, 103], 8, stretch=2)) == 6


def test_text_that_repeats_goes_on_repeating():
    assert propose([7] * 20, 6) == [7] * 6
    assert propose([4, 5] * 6, 5) == [4, 5, 4, 5, 4]


def test_says_nothing_about_what_it_never_saw():
    assert propose([1, 2, 3, 4]) == []
    assert propose([7, 1, 8, 1], min_match=2) == []


def test_learns_from_outputs_of_others_while_they_run_and_when_they_have_ended():
    proposer = SuffixProposer()
    answer = [10, 11, 12, 13, 14, 15]
    grow(proposer, 0, [1, 2], answer)
    begun = Ask(1, [3, 10, 11], 3, prompt_len=1)
    assert proposer.propose([begun]) == [[12, 13, 14]]
    proposer.finish(0)
    proposer.finish(1)
    assert proposer.propose([Ask(2, [4, 10, 11], 3, prompt_len=1)]) == [[12, 13, 14]]


def test_does_not_learn_from_the_prompts_of_others():
    proposer = SuffixProposer()
    grow(proposer, 0, [20, 21, 22, 23], [5])
    assert proposer.propose([Ask(1, [9, 20, 21], 3, prompt_len=1)]) == [[]]


def test_never_learns_across_salts():
    proposer = SuffixProposer()
    grow(proposer, 0, [1], [10, 11, 12, 13], salt=b"one")
    assert proposer.propose([Ask(1, [1, 10, 11], 2, 1, b"two")]) == [[]]
    assert proposer.propose([Ask(2, [1, 10, 11], 2, 1, b"")]) == [[]]
    assert proposer.propose([Ask(3, [1, 10, 11], 2, 1, b"one")]) == [[12, 13]]


def test_salts_used_longest_ago_are_forgotten():
    proposer = SuffixProposer()
    for i in range(SALTS + 5):
        grow(proposer, i, [1], [10, 11, 12], salt=b"%d" % i)
    assert len(proposer._shared) == SALTS
    assert proposer.propose([Ask(99, [1, 10, 11], 1, 1, b"0")]) == [[]]


def test_what_is_shared_is_bounded_and_outlives_one_generation():
    proposer = SuffixProposer(max_shared_tokens=50)
    random_ = random.Random(0)
    grow(proposer, 0, [1], [10, 11, 12, 13])
    for i in range(1, 40):
        grow(proposer, i, [1], [random_.randrange(100, 10**6) for _ in range(10)])
        proposer.finish(i)
        shared = proposer._shared[b""]
        assert shared.newer.tokens < 50 + CATCH_UP
        assert shared.older.tokens < 50 + CATCH_UP
        known = proposer.propose([Ask(1000 + i, [2, 10, 11], 1, prompt_len=1)]) == [[12]]
        if i == 6:
            assert known  # in the older generation by now, and asking has not refreshed it for others
    assert shared.older.tokens > 0


def test_tokens_of_running_sequences_are_bounded():
    proposer = SuffixProposer(max_tokens=100)
    text = [*range(60), *range(30)]
    assert proposer.propose([Ask(0, text, 1, 90)]) == [[30]]
    assert proposer.propose([Ask(1, text, 1, 90)]) == [[]]  # no room for it
    proposer.finish(0)
    assert proposer.propose([Ask(1, text, 1, 90)]) == [[30]]
    proposer.finish(1)
    proposer.finish(1)
    assert proposer._room == 100


def test_a_long_prompt_is_indexed_over_several_asks():
    text = [*range(3 * CATCH_UP), 5, 6, 7]
    proposer = SuffixProposer()
    found = [proposer.propose([Ask(0, text, 1, len(text))])[0] for _ in range(5)]
    assert found == [[], [], [], [8], [8]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.randoms(use_true_random=False))
def test_drafts_are_short_enough_and_made_of_what_was_seen(tokens, random_):
    proposer = SuffixProposer()
    text = []
    while len(text) < len(tokens):
        text.extend(tokens[len(text) : len(text) + random_.randint(1, 5)])
        limit = random_.randint(1, 6)
        draft = proposer.propose([Ask(0, text, limit, 1)])[0]
        assert len(draft) <= limit
        assert set(draft) <= set(text)
        if len(text) > 1 and text[-1] in text[:-1]:
            assert draft


def test_a_proposal_reads_as_little_of_a_long_text_as_of_a_short_one():
    random_ = random.Random(0)
    text = CountingList(random_.randrange(40) for _ in range(4000))
    proposer = SuffixProposer()
    for _ in range(4000 // CATCH_UP + 1):
        proposer.propose([Ask(0, text, 8, 2000)])
    for _ in range(20):
        text.append(random_.randrange(40))
        text.reads = 0
        proposer.propose([Ask(0, text, 8, 2000)])
        assert text.reads <= 20
