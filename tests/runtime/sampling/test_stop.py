"""Stop strings: held back exactly, wherever the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import DecodeStream
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from optpipe_runtime.sampling import StopChecker

STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)


def reference(text: str, stop: list[str], include: bool) -> tuple[str, str | None]:
    """The first prefix that ends in a stop string; the longest of those that it ends in."""
    for end in range(len(text) + 1):
        found = [word for word in stop if text[:end].endswith(word)]
        if found:
            longest = max(found, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def held(text: str, stop: list[str]) -> int:
    """How long the longest end of the text is that begins a stop string."""
    return max((k for word in stop for k in range(len(word)) if text.endswith(word[:k])), default=0)


@settings(max_examples=400, deadline=None)
@given(
    STOPS,
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.booleans(),
)
def test_what_comes_out_is_all_that_is_sure(stop: list[str], pieces: list[str], include: bool) -> None:
    checker = StopChecker(stop, include=include)
    shown, text = "", ""
    for piece in pieces:
        shown += checker.push(piece)
        text += piece
        sure, matched = reference(text, stop, include)
        assert checker.matched == matched
        assert shown == (sure if matched else text[: len(text) - held(text, stop)])
    if checker.matched is None:
        assert shown + checker.flush() == text


def test_nothing_follows_a_match() -> None:
    checker = StopChecker(["b"])
    assert checker.push("abab") == "a"
    assert checker.push("more") == "" and checker.flush() == ""


@pytest.mark.parametrize(("include", "shown"), [(False, "x"), (True, "xEND")])
def test_a_match_over_several_pieces(include: bool, shown: str) -> None:
    checker = StopChecker(["END"], include=include)
    assert "".join(checker.push(it) for it in ("x", "E", "N", "Dy")) == shown
    assert checker.matched == "END"


def test_text_before_min_tokens_does_not_count() -> None:
    checker = StopChecker(["ab"])
    assert checker.push("xab", armed=False) == "xab"
    assert checker.push("a", armed=False) == "a"
    assert checker.push("b") == "b"
    assert checker.push("cab") == "c" and checker.matched == "ab"


def test_held_text_comes_out_when_stops_do_not_count_again() -> None:
    checker = StopChecker(["ab"])
    assert checker.push("xa") == "x"
    assert checker.push("c", armed=False) == "ac"


def test_without_stop_strings_nothing_is_held() -> None:
    assert StopChecker([]).push("anything") == "anything"


@pytest.mark.parametrize("word", ["é", "🙂", "a🙂b", "€€"])
def test_characters_that_are_split_among_tokens(word: str) -> None:
    """One token a byte: a character is text only when its last byte has come."""
    alphabet = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    stream, checker = DecodeStream([]), StopChecker([word])
    shown = ""
    for token in tokenizer.encode(f"so é🙃 {word} never").ids:
        shown += checker.push(stream.step(tokenizer, token) or "")
        assert "�" not in shown
    assert checker.matched == word
    assert shown == f"so é🙃 {word} never"[: f"so é🙃 {word} never".index(word)]


def test_a_stop_string_that_overlaps_itself() -> None:
    checker = StopChecker(["aab"])
    assert "".join(checker.push(it) for it in "aaab") == "a"
