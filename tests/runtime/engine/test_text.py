"""The text of answers: stop strings, end tokens, characters in pieces, special tokens."""

import pytest

from optpipe.testing.tokenizer import BOS, EOS
from optpipe_runtime.engine.text import TextState
from optpipe_runtime.sampling import SamplingParams

from ..tape import ScriptExecutor

V = 259


@pytest.fixture
def say(make_engine, byte_tokenizer):
    """→ (text, deltas, output) of an executor that says a text."""

    def say(text, *, extra=(), **params):
        answer = [*byte_tokenizer.encode(text), *extra]
        prompt = byte_tokenizer.encode("Q: ")
        executor = ScriptExecutor({tuple(prompt): answer}, end=EOS, vocab_size=V)
        engine = make_engine(executor, byte_tokenizer, eos=[EOS])
        submission = engine.submit("Q: ", SamplingParams(**{"temperature": 0, "max_tokens": 200} | params))
        deltas = list(submission)
        return "".join(it.text for it in deltas), deltas

    return say


def test_the_end_token_ends_the_text_and_is_not_shown(say):
    text, deltas = say("Grüße 🙂!", skip_special_tokens=False)
    assert text == "Grüße 🙂!"
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].stop_reason is None
    assert deltas[-1].token_ids[-1] == EOS
    assert deltas[-1].usage.completion_tokens == len("Grüße 🙂!".encode()) + 1


def test_characters_come_whole(say):
    _, deltas = say("a🙂b")
    assert "�" not in "".join(it.text for it in deltas)


def test_half_a_character_at_the_end_is_not_shown(say):
    text, deltas = say("a🙂", max_tokens=3)
    assert text == "a"
    assert deltas[-1].finish_reason == "length"


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_over_several_tokens(say, include):
    text, deltas = say("one two STOP three", stop=("STOP",), include_stop_str_in_output=include)
    assert text == ("one two STOP" if include else "one two ")
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "STOP")
    assert sum(len(it.token_ids) for it in deltas) == len("one two STOP")


def test_what_only_began_as_a_stop_string_is_shown_at_the_end(say):
    assert say("one STO", stop=("STOP",))[0] == "one STO"
    assert say("one STO and", stop=("STOP",), max_tokens=7)[0] == "one STO"


def test_no_delta_shows_what_may_become_a_stop_string(say):
    shown = ""
    for delta in say("xxSTxxSTOxxSTOPyy", stop=("STOP",))[1]:
        shown += delta.text
        assert not shown.endswith("S")
    assert shown == "xxSTxxSTOxx"


def test_stop_strings_count_after_min_tokens(say):
    assert say("a.b.c.d", stop=(".",), min_tokens=4)[0] == "a.b.c"


@pytest.mark.parametrize("include", [False, True])
def test_stop_token_ids(say, include):
    stop = 33
    text, deltas = say("abc", extra=[stop, 40], stop_token_ids=(stop,), include_stop_str_in_output=include)
    assert text.startswith("abc")
    assert (len(text) > 3) == include
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", stop)


def test_ignore_eos_goes_on(say):
    text, deltas = say("ab", ignore_eos=True, max_tokens=6)
    assert text == "ab"
    assert deltas[-1].finish_reason == "length"


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens(say, skip):
    assert say("ab", extra=[BOS], skip_special_tokens=skip)[0] == ("ab" if skip else "ab<s>")


def test_bytes_that_are_no_text_do_no_harm(byte_tokenizer):
    state = TextState(byte_tokenizer, [], SamplingParams())
    broken = byte_tokenizer.encode("🙂")[1:3]
    text = "".join(map(state.push, [*broken * 5, *byte_tokenizer.encode("abcdefgh"), 258, 5000]))
    assert text.endswith("abcdefgh")


def test_without_a_tokenizer_there_is_no_text(make_engine):
    output = make_engine().submit([1], SamplingParams(temperature=0, max_tokens=3, stop=("x",))).result()
    assert output.text == ""
    assert len(output.token_ids) == 3
