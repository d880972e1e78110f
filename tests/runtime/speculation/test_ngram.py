import random

from hypothesis import given, settings
from hypothesis import strategies as st

from optpipe_runtime.speculation import Ask, NgramProposer
from optpipe_runtime.speculation.ngram import CANDIDATES, LONGEST

from .counting import CountingList


def propose(tokens, limit=4, **options):
    return NgramProposer(**options).propose([Ask(0, tokens, limit)])[0]


def test_copies_what_followed_the_same_words():
    assert propose([1, 2, 3, 4, 5, 6, 9, 1, 2, 3]) == [4, 5, 6, 9]


def test_says_nothing_when_nothing_matches_or_the_match_is_too_short():
    assert propose([1, 2, 3, 4]) == []
    assert propose([7, 1, 2, 8, 1, 2], min_match=3) == []
    assert propose([7, 1, 2, 8, 1, 2], min_match=2) == [8, 1, 2, 8]
    assert propose([5]) == propose([5, 5]) == []


def test_prefers_the_longest_match_and_then_the_newest():
    older, newer = [1, 2, 3, 10], [9, 2, 3, 20]
    assert propose([*older, *newer, 1, 2, 3], 1) == [10]
    assert propose([*newer, *older, 9, 2, 3], 1) == [20]
    assert propose([0, 2, 3, 10, 0, 2, 3, 20, 0, 2, 3], 1) == [20]


def test_a_short_match_carries_a_short_draft():
    tokens = [1, 2, *range(10, 30), 1, 2]
    assert propose(tokens, 8, stretch=1.5) == [10, 11, 12]


def test_a_copy_that_reaches_the_end_of_the_text_repeats_itself():
    assert propose([4, 5, 4, 5, 4, 5], 5) == [4, 5, 4, 5, 4]
    assert propose([7] * 6, 3) == [7, 7, 7]


def test_follows_a_match_older_than_the_candidates():
    """A pair seen everywhere hides the right place from the candidates, but not from who was just there."""
    passage = [100, 101, 1, 2, 102, 103, 104]
    noise = [token for i in range(3 * CANDIDATES) for token in (1, 2, 200 + i)]
    proposer = NgramProposer()
    text = [*passage, *noise, 100, 101]
    for token in passage[2:]:
        assert proposer.propose([Ask(0, text, 1)])[0] == [token]
        text.append(token)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 2**30))
def test_asked_step_by_step_or_at_once_and_like_the_definition(tokens, seed):
    """Whatever the pieces in which a text grows, the match is as long as the longest of the newest ones."""
    random_ = random.Random(seed)
    proposer = NgramProposer(stretch=100)
    text = []
    while len(text) < len(tokens):
        text.extend(tokens[len(text) : len(text) + random_.randint(1, 4)])
        draft = proposer.propose([Ask(7, text, 5)])[0]
        best = longest_of_newest(text)
        assert bool(draft) == (best >= 2)
        if draft:
            assert any(matches(text, draft, at) >= best for at in range(1, len(text) - 1))


def longest_of_newest(text):
    end = len(text) - 1
    places = [at for at in range(end - 1, 0, -1) if text[at - 1 : at + 1] == text[end - 1 : end + 1]]
    return max((matches(text, [], at) for at in places[:CANDIDATES]), default=0)


def matches(text, draft, at):
    """Length of the match that ends at ``at`` if ``draft`` continues it, else 0."""
    extended = [*text, *draft]
    if any(extended[at + 1 + i] != token for i, token in enumerate(draft)):
        return 0
    end, length = len(text) - 1, 0
    while length < LONGEST and at >= length and text[at - length] == text[end - length]:
        length += 1
    return length


def test_a_proposal_reads_as_little_of_a_long_text_as_of_a_short_one():
    random_ = random.Random(0)
    for words in (40, 3, 1):
        text = CountingList(random_.randrange(words) for _ in range(8000))
        proposer = NgramProposer()
        proposer.propose([Ask(0, text, 8)])
        for _ in range(20):
            text.append(random_.randrange(words))
            text.reads = 0
            proposer.propose([Ask(0, text, 8)])
            assert text.reads <= 2 * (CANDIDATES + 1) * (LONGEST + 1) + 20


def test_sequences_do_not_mix_and_finished_ones_are_forgotten():
    proposer = NgramProposer()
    first, second = [1, 2, 3, 4, 1, 2], [1, 2, 8, 8, 1, 2]
    assert proposer.propose([Ask(0, first, 1), Ask(1, second, 1)]) == [[3], [8]]
    proposer.finish(0)
    proposer.finish(0)
    proposer.finish(99)
    assert list(proposer._texts) == [1]
    assert proposer.propose([Ask(0, second, 1)]) == [[8]]
