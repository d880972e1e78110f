"""/v1/completions in detail: forms, echo, log-probabilities, several prompts and answers, streams."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from optpipe_runtime.server.schema.completion import CompletionAnswer

from .kit import CONTEXT, Served, ids
from .test_bad_input import text


def chunks(body: str) -> list[dict[str, Any]]:
    *events, done, rest = body.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(it.removeprefix("data: ")) for it in events]


@pytest.mark.parametrize(
    "fields", [{}, {"logprobs": 3}, {"echo": True, "logprobs": 0}, {"prompt_logprobs": 2}, {"n": 2}]
)
def test_the_answer_has_the_form_of_its_schema(served: Served, fields: dict[str, Any]) -> None:
    CompletionAnswer.model_validate(served.complete(max_tokens=3, **fields).json())


def test_text_is_what_the_executor_says(served: Served) -> None:
    (choice,) = served.complete("hello", max_tokens=12).json()["choices"]
    assert choice["text"] == text(served, "hello", 12)
    assert choice["finish_reason"] == "length"


def test_token_ids_and_text_are_the_same_prompt(served: Served) -> None:
    prompts = ["hello", ids("hello"), ["hello"], [ids("hello")]]
    assert len({served.complete(it, max_tokens=8).json()["choices"][0]["text"] for it in prompts}) == 1


def test_max_tokens_is_sixteen_unless_given(served: Served) -> None:
    assert served.complete().json()["usage"]["completion_tokens"] == 16


def test_a_context_that_fills_up_ends_the_text(served: Served) -> None:
    answer = served.complete("a" * (CONTEXT - 4), max_tokens=100).json()
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["choices"][0]["finish_reason"] == "length"


def test_choices_are_numbered_through_all_prompts(served: Served) -> None:
    answer = served.complete(["one", "two"], n=2, max_tokens=5).json()
    assert [it["index"] for it in answer["choices"]] == [0, 1, 2, 3]
    texts = [it["text"] for it in answer["choices"]]
    assert texts == [text(served, it, 5) for it in ("one", "one", "two", "two")]
    assert answer["usage"]["prompt_tokens"] == 6
    assert answer["usage"]["completion_tokens"] == 20


def test_answers_to_one_prompt_differ_and_come_again_with_their_seed(served: Served) -> None:
    def ask() -> list[str]:
        answer = served.complete("x", n=4, temperature=2.0, seed=7, max_tokens=12).json()
        return [it["text"] for it in answer["choices"]]

    first = ask()
    assert len(set(first)) > 1
    assert ask() == first


def test_a_stop_string_ends_the_text_and_is_named(served: Served) -> None:
    whole = text(served, "hello", 12)
    choice = served.complete("hello", max_tokens=12, stop=[whole[4:6]]).json()["choices"][0]
    assert choice["text"] == whole[: whole.index(whole[4:6])]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", whole[4:6])


def test_a_stop_string_never_shows_in_a_stream(served: Served) -> None:
    whole = text(served, "hello", 12)
    answer = served.complete("hello", max_tokens=12, stop=whole[4:8], stream=True)
    assert "".join(it["choices"][0]["text"] for it in chunks(answer.text)) == whole[:4]


def test_a_stream_is_the_answer_in_pieces(served: Served) -> None:
    fields: dict[str, Any] = {"max_tokens": 10, "logprobs": 2, "n": 2, "echo": True}
    whole = served.complete(["one", "three"], **fields).json()
    pieces = chunks(served.complete(["one", "three"], **fields, stream=True).text)
    assert len(pieces) > 8
    for choice in whole["choices"]:
        own = [it["choices"][0] for it in pieces if it["choices"][0]["index"] == choice["index"]]
        assert "".join(it["text"] for it in own) == choice["text"]
        assert [it["finish_reason"] for it in own] == [None] * (len(own) - 1) + ["length"]
        for name, entries in choice["logprobs"].items():
            assert [it for piece in own for it in piece["logprobs"][name]] == entries


def test_usage_comes_last_when_it_is_asked_for(served: Served) -> None:
    pieces = chunks(served.complete(max_tokens=4, stream=True, stream_options={"include_usage": True}).text)
    assert [it["usage"] for it in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"]["total_tokens"] == 9
    assert not [it for it in chunks(served.complete(max_tokens=4, stream=True).text) if "usage" in it]


def test_what_an_evaluation_of_likelihoods_reads(served: Served) -> None:
    """lm-eval's local-completions: echo, one token, log-probabilities, is each one the likeliest."""
    prompt = ids("some context") + served.executor.continued(ids("some context"), 3)
    answer = served.complete([prompt], max_tokens=1, logprobs=1, echo=True, seed=1234).json()
    logprobs = answer["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(prompt) + 1
    assert logprobs["token_logprobs"][0] is None
    for at in range(1, len(prompt)):
        row = served.executor.row(prompt[:at]).astype(np.float64)
        expected = row[prompt[at]] - math.log(np.exp(row - row.max()).sum()) - row.max()
        assert logprobs["token_logprobs"][at] == pytest.approx(expected, abs=1e-4)
        likeliest = max(logprobs["top_logprobs"][at], key=logprobs["top_logprobs"][at].get)
        assert (likeliest == logprobs["tokens"][at]) == (row.argmax() == prompt[at])


def test_no_new_token_may_be_wanted(served: Served) -> None:
    answer = served.complete("hello", max_tokens=0, echo=True, logprobs=1).json()
    assert answer["choices"][0]["text"] == "hello"
    assert answer["choices"][0]["logprobs"]["tokens"] == list("hello")
    assert answer["usage"]["completion_tokens"] == 0
    (piece,) = chunks(served.complete("hello", max_tokens=0, echo=True, stream=True).text)
    assert (piece["choices"][0]["text"], piece["choices"][0]["finish_reason"]) == ("hello", "length")


def test_log_probabilities_of_the_prompt_by_token_id(served: Served) -> None:
    (choice,) = served.complete("abc", max_tokens=1, prompt_logprobs=2).json()["choices"]
    first, *others = choice["prompt_logprobs"]
    assert first is None
    for token, entry in zip(ids("abc")[1:], others, strict=True):
        assert entry[str(token)]["decoded_token"] in "abc"
        assert len(entry) in (2, 3)


def test_offsets_are_those_of_the_text(served: Served) -> None:
    choice = served.complete("hé", max_tokens=4, logprobs=0).json()["choices"][0]
    assert choice["logprobs"]["text_offset"] == [2, 3, 4, 5]
    echoed = served.complete("he", max_tokens=2, logprobs=0, echo=True).json()["choices"][0]
    assert [echoed["text"][i] for i in echoed["logprobs"]["text_offset"]] == echoed["logprobs"]["tokens"]


def test_a_special_token_in_a_raw_prompt_is_one(served: Served) -> None:
    assert served.complete("<s>a", max_tokens=1).json()["usage"]["prompt_tokens"] == 2


def test_tokens_and_back(served: Served) -> None:
    found = served.post("/tokenize", {"prompt": "héllo</s>", "return_token_strs": True}).json()
    assert found["count"] == len(found["tokens"]) == 7
    assert found["token_strs"][1:3] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert found["max_model_len"] == CONTEXT
    assert served.post("/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": "héllo</s>"}
