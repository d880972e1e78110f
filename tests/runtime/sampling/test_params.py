"""Values that no request may have, each refused by a sentence that names its field."""

from __future__ import annotations

import json
import math

import pytest

from optpipe.errors import RequestError
from optpipe_runtime.sampling import SamplingParams, StructuredOutput, params

HUGE = 10**30


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (field, value)
            for field in (
                "temperature",
                "top_p",
                "min_p",
                "repetition_penalty",
                "presence_penalty",
                "frequency_penalty",
            )
            for value in (math.nan, math.inf, -math.inf, -3.0, 1e9, HUGE, "1", True, None, [1])
        ),
        *(
            (field, value)
            for field in ("n", "top_k", "min_tokens", "max_tokens", "logprobs", "prompt_logprobs", "seed")
            for value in (HUGE, -HUGE, 1.5, "1", True, math.nan)
        ),
        ("top_p", 0.0),
        ("repetition_penalty", 0.0),
        ("n", 0),
        ("n", params.MAX_N + 1),
        ("top_k", -2),
        ("top_k", params.MAX_TOP_K + 1),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", -1),
        ("logprobs", params.MAX_LOGPROBS + 1),
        ("prompt_logprobs", params.MAX_LOGPROBS + 1),
        ("seed", 2**64),
        ("stop", ["x"] * 5000),
        ("stop", [""]),
        ("stop", ["x" * (params.MAX_STOP_CHARACTERS + 1)]),
        ("stop", [1]),
        ("stop", {"a": 1}),
        ("bad_words", ["x"] * 5000),
        ("bad_words", [None]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [1.0]),
        ("stop_token_ids", list(range(5000))),
        ("stop_token_ids", "1"),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [HUGE]),
        ("allowed_token_ids", [-1]),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {"1": 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", [1]),
        ("logit_bias", dict.fromkeys(range(5000), 1.0)),
        ("ignore_eos", 1),
        ("skip_special_tokens", None),
        ("include_stop_str_in_output", "yes"),
        ("structured", "{}"),
    ],
)
def test_refuses(field: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    message = caught.value.message
    assert field in message and message.endswith(".") and len(message) < 200


def test_refuses_more_tokens_at_least_than_at_most() -> None:
    with pytest.raises(RequestError, match="min_tokens must be at most max_tokens, got 9 and 3"):
        SamplingParams(min_tokens=9, max_tokens=3)


@pytest.mark.parametrize(
    "fields", [{"logit_bias": {50: 1.0}}, {"allowed_token_ids": (50,)}, {"stop_token_ids": (50,)}]
)
def test_refuses_tokens_past_the_vocabulary(fields: dict[str, object]) -> None:
    wanted = SamplingParams(**fields)  # type: ignore[arg-type]
    wanted.check(51)
    with pytest.raises(RequestError, match=f"{next(iter(fields))} names the token id 50, .* ends at 49"):
        wanted.check(50)


def test_refuses_more_tokens_than_the_context_has() -> None:
    SamplingParams(max_tokens=8).check(9, context=8)
    for fields in ({"max_tokens": 9}, {"min_tokens": 9}):
        with pytest.raises(RequestError, match="is 9, but the model's context has 8"):
            SamplingParams(**fields).check(9, context=8)


def test_takes_what_the_field_sends() -> None:
    found = SamplingParams(
        stop="END",  # type: ignore[arg-type]
        top_k=-1,
        seed=-1,
        stop_token_ids=[3],  # type: ignore[arg-type]
        logit_bias={4: -100},
    )
    assert (found.stop, found.top_k, found.stop_token_ids, found.logit_bias) == (
        ("END",),
        0,
        (3,),
        {4: -100.0},
    )
    assert SamplingParams(temperature=1e-6).greedy and SamplingParams(top_k=1).greedy
    assert not SamplingParams().greedy


NESTED = '{"type":"array","items":' * 30_000 + "{}" + "}" * 30_000


def nested(depth: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for _ in range(depth):
        found = {"items": found}
    return found


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "exactly one of"),
        ({"regex": "a", "grammar": "b"}, "got 2 of them"),
        ({"json_object": 1}, "json_object must be true or false"),
        ({"regex": ""}, "regex is empty"),
        ({"regex": 5}, "regex must be text"),
        ({"regex": "\ud800"}, "surrogate"),
        ({"grammar": "x" * 300_000}, "grammar may have 262144 characters"),
        ({"json_schema": "{"}, "json_schema is no JSON"),
        ({"json_schema": "[]"}, "json_schema must be an object"),
        ({"json_schema": {"a": {1}}}, "json_schema is no JSON"),
        ({"json_schema": {"a": math.nan}}, "json_schema is no JSON"),
        ({"json_schema": {"enum": ["x" * 300_000]}}, "json_schema may have"),
        ({"json_schema": NESTED[:240_000]}, "json_schema nests over 100 levels"),
        ({"json_schema": NESTED}, "json_schema may have 262144 characters"),
        ({"json_schema": "[" * 200_000}, "json_schema nests over 100 levels"),
        ({"json_schema": nested(30_000)}, "json_schema nests over 100 levels"),
        ({"json_schema": '{"minimum": ' + "9" * 9000 + "}"}, "json_schema is no JSON"),
    ],
    ids=range(17),
)
def test_refuses_structured_output(fields: dict[str, object], says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        StructuredOutput(**fields)  # type: ignore[arg-type]
    assert len(caught.value.message) < 300


def test_a_schema_is_kept_as_text() -> None:
    schema = {"type": "object", "description": 'a "[[[" of no depth'}
    assert json.loads(StructuredOutput(json_schema=schema).source) == schema
    assert StructuredOutput(json_schema=json.dumps(schema)).kind == "json_schema"
    assert StructuredOutput(json_schema=True).source == "{}"
    assert StructuredOutput(json_object=True).kind == "json_object"
