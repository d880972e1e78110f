from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from optpipe_runtime.speculation.automaton import ROOT, SuffixAutomaton

TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=14), min_size=1, max_size=3)


def occurrences(texts, piece):
    return sum(text[i : i + len(piece)] == piece for text in texts for i in range(len(text) - len(piece) + 1))


def walk(automaton, piece):
    state = ROOT
    for token in piece:
        state = automaton.next[state].get(token, -1)
        if state == -1:
            return None
    return state


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.randoms(use_true_random=False))
def test_counts_every_piece_of_texts_that_grow_side_by_side(texts, random_):
    """Up to 14 tokens a text, fewer than the contexts that are counted: exact."""
    automaton = SuffixAutomaton()
    last, grown = [ROOT] * len(texts), [[] for _ in texts]
    while any(len(it) < len(text) for it, text in zip(grown, texts, strict=True)):
        i = random_.choice([i for i, text in enumerate(texts) if len(grown[i]) < len(text)])
        token = texts[i][len(grown[i])]
        last[i] = automaton.append(last[i], token)
        grown[i].append(token)
    assert automaton.tokens == sum(map(len, texts))
    pieces = {
        tuple(text[i:j]) for text in texts for i in range(len(text)) for j in range(i + 1, len(text) + 1)
    }
    for piece in pieces:
        state = walk(automaton, piece)
        assert state is not None
        assert automaton.count[state] == occurrences(texts, list(piece))
        check_best(automaton, state, texts, list(piece))
    assert walk(automaton, [0, 1, 2, 0, 3]) is None
    for text, state in zip(texts, last, strict=True):
        assert walk(automaton, text) == state


def check_best(automaton, state, texts, piece):
    followed = Counter({token: occurrences(texts, [*piece, token]) for token in range(3)})
    most = max(followed.values())
    best = automaton.best[state]
    if most == 0:
        assert best == -1
    else:
        assert followed[best] == most


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=20), st.lists(st.integers(0, 2), max_size=8))
def test_finds_the_longest_end_that_was_seen(text, wanted):
    automaton = SuffixAutomaton()
    last = ROOT
    for token in text:
        last = automaton.append(last, token)
    state, length = automaton.find(wanted)
    longest = max(n for n in range(len(wanted) + 1) if n == 0 or occurrences([text], wanted[-n:]))
    assert length == longest
    assert state == walk(automaton, wanted[len(wanted) - length :])


def test_of_equals_the_newest_is_best():
    automaton = SuffixAutomaton()
    last = ROOT
    for token in [1, 5, 2, 6, 1, 7]:
        last = automaton.append(last, token)
    assert automaton.best[walk(automaton, [1])] == 7


def test_stays_small_on_text_that_repeats():
    automaton = SuffixAutomaton()
    last = ROOT
    for _ in range(3000):
        last = automaton.append(last, 7)
    assert len(automaton.link) == 3001
