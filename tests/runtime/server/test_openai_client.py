"""The official client runs every endpoint it has for a server like this, streaming too."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from .kit import MODEL, LetterExecutor, ScriptExecutor, Served, serve, wait_until

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCRIPTS = {
    "user: hi\nassistant: ": "Hello there!",
    "weather?\nassistant: ": f"Let me see. {CALL}",
    "sunny\nassistant: ": "It is sunny.",
}


@pytest.fixture(scope="module")
def talkative() -> Iterator[Served]:
    with serve(ScriptExecutor(SCRIPTS, cost=lambda step: 0.001), context=1024) as it:
        yield it


@pytest.fixture(scope="module")
def client(talkative: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{talkative.url}/v1", api_key="none", max_retries=0) as it:
        yield it


def user(content: str) -> Any:
    return [{"role": "user", "content": content}]


def test_models(client: OpenAI) -> None:
    assert [it.id for it in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=user("hi"), temperature=0)
    assert answer.choices[0].message.content == "Hello there!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len("Hello there!") + 1


def test_openais_own_fields_are_accepted_and_logged(client: OpenAI, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "optpipe.server"):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=user("hi"),
            temperature=0,
            reasoning_effort="low",
            verbosity="low",
            prompt_cache_key="a secret",
            prediction={"type": "content", "content": "a secret"},
            modalities=["text"],
        )
        assert answer.choices[0].message.content == "Hello there!"
        wait_until(lambda: any(hasattr(it, "ignored") for it in caplog.records))
    (said,) = [it.ignored for it in caplog.records if hasattr(it, "ignored")]
    assert said == "reasoning_effort,verbosity,prompt_cache_key,prediction"


def test_a_past_refusal_is_a_turn(client: OpenAI) -> None:
    past: Any = {"role": "assistant", "content": None, "refusal": "I would rather not."}
    messages = [*user("do it"), past, *user("hi")]
    answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert answer.choices[0].message.content == "Hello there!"
    assert answer.usage is not None
    alone = client.chat.completions.create(model=MODEL, messages=[messages[0], messages[2]], temperature=0)
    assert alone.usage is not None
    assert answer.usage.prompt_tokens > alone.usage.prompt_tokens + len("I would rather not.")


def test_chat_streams(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=user("hi"), temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(it.choices[0].delta.content or "" for it in chunks[:-1]) == "Hello there!"
    assert len(chunks) > 5  # it came in pieces
    assert [it.choices[0].finish_reason for it in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 13


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="hello", max_tokens=6, temperature=0, n=2, logprobs=2
    )
    first, second = answer.choices
    assert first.text == second.text
    assert [first.index, second.index] == [0, 1]
    assert first.logprobs is not None
    assert "".join(first.logprobs.tokens or []) == first.text
    assert [len(it) for it in first.logprobs.top_logprobs or []] == [2] * 6


def test_completions_stream(client: OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt=["one", "two"], max_tokens=9, temperature=0)
    pieces = ["", ""]
    for chunk in client.completions.create(
        model=MODEL, prompt=["one", "two"], max_tokens=9, temperature=0, stream=True
    ):
        pieces[chunk.choices[0].index] += chunk.choices[0].text
    assert pieces == [it.text for it in whole.choices]


def test_echo_has_the_log_probabilities_of_the_prompt(client: OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="hello", max_tokens=1, temperature=0, logprobs=1, echo=True
    )
    (choice,) = answer.choices
    assert choice.text.startswith("hello")
    assert choice.logprobs is not None
    first, *others = choice.logprobs.token_logprobs or []
    assert first is None
    assert len(others) == 5
    assert all(isinstance(it, float) and it <= 0 for it in others)


def test_the_routes_that_the_client_has_no_name_for(talkative: Served) -> None:
    with OpenAI(base_url=talkative.url, api_key="none", max_retries=0) as client:
        tokens: Any = client.post("/tokenize", body={"prompt": "hi"}, cast_to=object)
        assert tokens["count"] == 2
        text: Any = client.post("/detokenize", body={"tokens": tokens["tokens"]}, cast_to=object)
        assert text == {"prompt": "hi"}
        healthy: Any = client.get("/health", cast_to=object)
        assert healthy == {"status": "ok"}
        assert "optpipe:num_requests_running" in client.get("/metrics", cast_to=str)
        assert "<html" in client.get("/", cast_to=str)


def test_chat_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=user("hi"), temperature=0, logprobs=True, top_logprobs=3, max_tokens=4
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [it.token for it in logprobs.content] == list("Hell")
    assert all(len(it.top_logprobs) == 3 and it.top_logprobs[0].token == it.token for it in logprobs.content)
    assert [it.bytes for it in logprobs.content] == [[ord(c)] for c in "Hell"]


def test_a_tool_is_called_and_answered(client: OpenAI) -> None:
    messages = user("weather?")
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
    messages += [
        choice.message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0)
    assert answer.choices[0].message.content == "It is sunny."


def test_a_tool_call_streams(client: OpenAI) -> None:
    text, calls, reason = "", [], None
    for chunk in client.chat.completions.create(
        model=MODEL, messages=user("weather?"), tools=[WEATHER], temperature=0, stream=True
    ):
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        calls += choice.delta.tool_calls or []
        reason = choice.finish_reason or reason
    assert text.strip() == "Let me see."
    assert reason == "tool_calls"
    (call,) = calls
    assert call.index == 0
    assert call.function is not None
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments or "") == {"city": "Rome"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "reason"),
    [("required", "tool_calls"), ({"type": "function", "function": {"name": "weather"}}, "stop")],
    ids=["required", "named"],
)
def test_a_tool_that_must_be_called_is(client: OpenAI, choice: Any, reason: str, stream: bool) -> None:
    fields: dict[str, Any] = {
        "tools": [WEATHER],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "seed": 1,
    }
    asked = {"model": MODEL, "messages": user("hi"), "max_tokens": 400, **fields}
    if stream:
        name = arguments = ""
        finished = None
        for chunk in client.chat.completions.create(**asked, stream=True):
            for call in chunk.choices[0].delta.tool_calls or []:
                name += call.function.name or ""
                arguments += call.function.arguments or ""
            finished = chunk.choices[0].finish_reason or finished
    else:
        answer = client.chat.completions.create(**asked)
        (call,) = answer.choices[0].message.tool_calls
        name, arguments, finished = (
            call.function.name,
            call.function.arguments,
            answer.choices[0].finish_reason,
        )
    assert name == "weather"
    assert json.loads(arguments)["city"] in ("Rome", "Oslo")
    assert finished == reason


@pytest.mark.parametrize(
    "shape",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "c", "schema": {"enum": ["Rome", 7]}},
            }
        },
        {"extra_body": {"structured_outputs": {"choice": ["Rome", "7"]}}},
        {"extra_body": {"structured_outputs": {"regex": "Rome|7"}}},
    ],
    ids=["schema", "choice", "regex"],
)
def test_the_text_has_the_shape_asked_for(client: OpenAI, shape: dict[str, Any]) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=user("hi"), max_tokens=40, seed=3, **shape)
    assert str(answer.choices[0].message.content).strip('"') in ("Rome", "7")


def test_errors_are_the_clients_own(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=user("hi"), temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt", messages=user("hi"))
    assert missing.value.code == "model_not_found"


def test_the_asynchronous_client(talkative: Served) -> None:
    async def ask() -> tuple[str, list[str]]:
        async with AsyncOpenAI(base_url=f"{talkative.url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=user("hi"), temperature=0, stream=True
            )
            text = "".join([it.choices[0].delta.content or "" async for it in stream])
            many = await asyncio.gather(
                *(client.completions.create(model=MODEL, prompt=f"{i}", max_tokens=8) for i in range(8))
            )
            return text, [it.choices[0].text for it in many]

    text, many = asyncio.run(ask())
    assert text == "Hello there!"
    assert all(many)


def test_a_key_is_asked_for_and_taken() -> None:
    from optpipe_runtime.server import ServerConfig

    config = ServerConfig(model_name=MODEL, api_keys=("right", "also right"))
    with serve(LetterExecutor(), config=config) as served:
        for key in config.api_keys:
            assert OpenAI(base_url=f"{served.url}/v1", api_key=key).models.list().data
        with pytest.raises(openai.AuthenticationError):
            OpenAI(base_url=f"{served.url}/v1", api_key="wrong").models.list()
