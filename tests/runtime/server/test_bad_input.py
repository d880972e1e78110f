"""Every bad input gets the right status and sentence, and harms nobody: see `harmless`."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from .kit import CONTEXT, Served, ids, wait_until

COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
NEIGHBOUR, NEXT = "a neighbour", "the next"
HUGE = 10**30


@contextlib.contextmanager
def harmless(served: Served) -> Iterator[None]:
    """Around a bad request: a neighbour's text, the blocks and the next request are as without it."""
    found: list[str] = []

    def neighbour() -> None:
        found.append(served.complete(NEIGHBOUR, max_tokens=40).json()["choices"][0]["text"])

    thread = threading.Thread(target=neighbour)
    thread.start()
    wait_until(lambda: served.blocks > 0 or bool(found), 20)  # on a very busy machine it may be over by now
    yield
    thread.join(20)
    assert found == [text(served, NEIGHBOUR, 40)]
    wait_until(lambda: served.idle)
    assert served.blocks == 0
    assert served.complete(NEXT, max_tokens=5).json()["choices"][0]["text"] == text(served, NEXT, 5)


def text(served: Served, prompt: str, count: int) -> str:
    """What greedy decoding gives, from the executor alone."""
    tokens = served.executor.continued(ids(prompt), count)
    return served.engine.tokenizer.decode(tokens)


def message(role: str = "user", content: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def tool(name: str = "f", **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters or {"type": "object"}}}


SLOW_SCHEMA = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(20_000)}}


def past_call(arguments: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}


# name → (path, body or its bytes, status, what the sentence says)
CASES: dict[str, tuple[str, Any, int, str]] = {
    # Bodies
    "empty body": (COMPLETE, b"", 400, "not JSON"),
    "no JSON": (COMPLETE, b"{'prompt': 1}", 400, "not JSON"),
    "an array": (COMPLETE, [1, 2], 400, "must be a JSON object"),
    "a number": (CHAT, 7, 400, "must be a JSON object"),
    "null": (CHAT, None, 400, "must be a JSON object"),
    "not UTF-8": (COMPLETE, b'{"prompt": "\xff\xfe"}', 400, "not JSON"),
    "half of a surrogate pair": (COMPLETE, rb'{"prompt": "\ud800"}', 400, "not JSON"),
    "nests 30,000 deep": (COMPLETE, nested(30_000).encode(), 400, "not JSON"),
    "a number of 100,000 digits": (
        COMPLETE,
        b'{"prompt": "a", "seed": ' + b"9" * 100_000 + b"}",
        400,
        "JSON|seed",
    ),
    "too long": (COMPLETE, b" " * (5 << 20), 413, "longer than the 4194304 bytes"),
    "unknown field": (COMPLETE, {"prompt": "a", "temprature": 1}, 400, "did you mean 'temperature'"),
    "remote code": (COMPLETE, {"prompt": "a", "trust_remote_code": True}, 400, "'trust_remote_code'"),
    "no prompt": (COMPLETE, {}, 400, "lacks the field 'prompt'"),
    "no messages": (CHAT, {}, 400, "lacks the field 'messages'"),
    "unknown model": (COMPLETE, {"prompt": "a", "model": "gpt"}, 404, "'gpt' is not served"),
    # Prompts
    "empty prompt": (COMPLETE, {"prompt": ""}, 400, "prompt is empty"),
    "no token": (COMPLETE, {"prompt": []}, 400, "'prompt' is wrong"),
    "one of two prompts is empty": (COMPLETE, {"prompt": ["a", ""]}, 400, "Prompt 1 is empty"),
    "negative token id": (COMPLETE, {"prompt": [1, -1]}, 400, "'prompt.1' is wrong"),
    "token id past the vocabulary": (COMPLETE, {"prompt": [1, 259]}, 400, r"\[0, 259\), got 259"),
    "huge token id": (COMPLETE, {"prompt": [HUGE]}, 400, "'prompt.0' is wrong"),
    "token ids that are no integers": (COMPLETE, {"prompt": [1, 1.5]}, 400, "'prompt.1' is wrong"),
    "mixed prompt": (COMPLETE, {"prompt": ["a", 1]}, 400, "'prompt.1' is wrong"),
    "prompt is an object": (COMPLETE, {"prompt": {}}, 400, "'prompt' is wrong"),
    "longer than the context": (COMPLETE, {"prompt": "a" * CONTEXT}, 400, f"has {CONTEXT} tokens"),
    "far longer than the context": (COMPLETE, {"prompt": "a" * 1_000_000}, 400, "has 1000000 characters"),
    "too many prompts": (COMPLETE, {"prompt": ["a"] * 129}, 400, "128 prompts here, got 129"),
    # Counts
    "n is 0": (COMPLETE, {"prompt": "a", "n": 0}, 400, "'n' is wrong"),
    "huge n": (COMPLETE, {"prompt": "a", "n": 100_000}, 400, "n may be 16 at most here"),
    "negative n": (COMPLETE, {"prompt": "a", "n": -1}, 400, "'n' is wrong"),
    "n beyond integers": (COMPLETE, {"prompt": "a", "n": HUGE}, 400, "'n' is wrong"),
    "huge best_of": (COMPLETE, {"prompt": "a", "best_of": 10_000}, 400, "best_of must equal n"),
    "max_tokens is 0": (
        COMPLETE,
        {"prompt": "a", "max_tokens": 0},
        400,
        "max_tokens may be 0 only with echo",
    ),
    "max_tokens is 0 in a chat": (CHAT, {"messages": [message()], "max_tokens": 0}, 400, "at least 1"),
    "negative max_tokens": (COMPLETE, {"prompt": "a", "max_tokens": -1}, 400, "'max_tokens' is wrong"),
    "huge max_tokens": (COMPLETE, {"prompt": "a", "max_tokens": 10**6}, 400, "context has 256"),
    "max_tokens beyond integers": (CHAT, {"messages": [message()], "max_tokens": HUGE}, 400, "'max_tokens'"),
    "huge min_tokens": (COMPLETE, {"prompt": "a", "min_tokens": 10**6}, 400, "min_tokens"),
    "min_tokens over max_tokens": (
        COMPLETE,
        {"prompt": "a", "min_tokens": 9, "max_tokens": 8},
        400,
        "at most max_t",
    ),
    "huge logprobs": (COMPLETE, {"prompt": "a", "logprobs": 10_000}, 400, "logprobs may be 20 at most"),
    "negative logprobs": (COMPLETE, {"prompt": "a", "logprobs": -1}, 400, "'logprobs' is wrong"),
    "huge prompt_logprobs": (
        COMPLETE,
        {"prompt": "a", "prompt_logprobs": 259},
        400,
        "prompt_logprobs may be 20",
    ),
    "huge top_logprobs": (
        CHAT,
        {"messages": [message()], "logprobs": True, "top_logprobs": 999},
        400,
        "20 at most",
    ),
    "top_logprobs alone": (CHAT, {"messages": [message()], "top_logprobs": 1}, 400, "needs logprobs"),
    "huge top_k": (COMPLETE, {"prompt": "a", "top_k": HUGE}, 400, "'top_k' is wrong"),
    "negative top_k": (COMPLETE, {"prompt": "a", "top_k": -2}, 400, "'top_k' is wrong"),
    # Numbers that are none
    "temperature is NaN": (COMPLETE, b'{"prompt": "a", "temperature": NaN}', 400, "'temperature' is wrong"),
    "temperature is infinite": (
        COMPLETE,
        b'{"prompt": "a", "temperature": 1e999}',
        400,
        "'temperature' is wrong",
    ),
    "negative temperature": (
        CHAT,
        {"messages": [message()], "temperature": -0.1},
        400,
        "'temperature' is wrong",
    ),
    "temperature is text": (COMPLETE, {"prompt": "a", "temperature": "1"}, 400, "'temperature' is wrong"),
    "temperature is a flag": (COMPLETE, {"prompt": "a", "temperature": True}, 400, "'temperature' is wrong"),
    "top_p is 0": (COMPLETE, {"prompt": "a", "top_p": 0}, 400, "'top_p' is wrong"),
    "top_p is NaN": (COMPLETE, b'{"prompt": "a", "top_p": NaN}', 400, "'top_p' is wrong"),
    "negative top_p": (COMPLETE, {"prompt": "a", "top_p": -0.5}, 400, "'top_p' is wrong"),
    "top_p is infinite": (COMPLETE, b'{"prompt": "a", "top_p": 1e999}', 400, "'top_p' is wrong"),
    "min_p is NaN": (COMPLETE, b'{"prompt": "a", "min_p": NaN}', 400, "'min_p' is wrong"),
    "negative min_p": (COMPLETE, {"prompt": "a", "min_p": -0.1}, 400, "'min_p' is wrong"),
    "top_p over 1": (COMPLETE, {"prompt": "a", "top_p": 1.01}, 400, "'top_p' is wrong"),
    "min_p over 1": (COMPLETE, {"prompt": "a", "min_p": 2}, 400, "'min_p' is wrong"),
    "penalty is infinite": (
        COMPLETE,
        b'{"prompt": "a", "presence_penalty": -Infinity}',
        400,
        "'presence_penalty'",
    ),
    "penalty is NaN": (COMPLETE, b'{"prompt": "a", "frequency_penalty": NaN}', 400, "'frequency_penalty'"),
    "negative repetition penalty": (
        COMPLETE,
        {"prompt": "a", "repetition_penalty": -1},
        400,
        "'repetition_penalty'",
    ),
    "repetition penalty is NaN": (
        COMPLETE,
        b'{"prompt": "a", "repetition_penalty": NaN}',
        400,
        "'repetition_penalty'",
    ),
    "penalty is huge": (COMPLETE, {"prompt": "a", "frequency_penalty": 1e30}, 400, "'frequency_penalty'"),
    "repetition penalty is 0": (
        COMPLETE,
        {"prompt": "a", "repetition_penalty": 0},
        400,
        "'repetition_penalty'",
    ),
    "seed beyond integers": (COMPLETE, {"prompt": "a", "seed": HUGE}, 400, "'seed' is wrong"),
    # Lists
    "thousands of stop strings": (
        COMPLETE,
        {"prompt": "a", "stop": ["x"] * 5000},
        400,
        "stop may be 16 at most",
    ),
    "a stop string of a megabyte": (COMPLETE, {"prompt": "a", "stop": "x" * 1_000_000}, 400, "stop"),
    "an empty stop string": (
        COMPLETE,
        {"prompt": "a", "stop": ["a", ""]},
        400,
        "stop must not hold an empty",
    ),
    "thousands of stop ids": (COMPLETE, {"prompt": "a", "stop_token_ids": [1] * 5000}, 400, "16 at most"),
    "stop id past the vocabulary": (COMPLETE, {"prompt": "a", "stop_token_ids": [259]}, 400, "ends at 258"),
    "thousands of bad words": (
        COMPLETE,
        {"prompt": "a", "bad_words": ["x"] * 5000},
        400,
        "bad_words may be 16",
    ),
    "thousands of biases": (
        COMPLETE,
        {"prompt": "a", "logit_bias": dict.fromkeys(map(str, range(5000)), 1)},
        400,
        "1024",
    ),
    "bias of no token": (COMPLETE, {"prompt": "a", "logit_bias": {"x": 1}}, 400, "'x', which is no token id"),
    "bias past the vocabulary": (COMPLETE, {"prompt": "a", "logit_bias": {"259": 1}}, 400, "ends at 258"),
    "bias is infinite": (COMPLETE, b'{"prompt": "a", "logit_bias": {"1": 1e999}}', 400, "'logit_bias.1'"),
    "allowed id past the vocabulary": (
        COMPLETE,
        {"prompt": "a", "allowed_token_ids": [HUGE]},
        400,
        "'allowed_token",
    ),
    # Shapes
    "JSON schema is invalid": (
        CHAT,
        {
            "messages": [message()],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"type": "nonsense"}},
            },
        },
        400,
        "schema",
    ),
    "JSON schema is missing": (
        CHAT,
        {"messages": [message()], "response_format": {"type": "json_schema"}},
        400,
        "lacks json_schema.schema",
    ),
    "JSON schema nests 150 deep": (
        COMPLETE,
        {"prompt": "a", "structured_outputs": {"json": json.loads('{"items":' * 150 + "{}" + "}" * 150)}},
        400,
        "100 levels deep",
    ),
    "JSON schema nests 30,000 deep as text": (
        COMPLETE,
        {"prompt": "a", "structured_outputs": {"json": nested(30_000)}},
        400,
        "levels deep",
    ),
    "JSON schema never finishes": (
        COMPLETE,
        {"prompt": "a", "structured_outputs": {"json": SLOW_SCHEMA}},
        400,
        "takes over|too much memory|characters at most",
    ),
    "grammar that has no text": (
        COMPLETE,
        {"prompt": "a", "structured_outputs": {"grammar": "start: start"}},
        400,
        "no text fits it",
    ),
    "regex is invalid": (COMPLETE, {"prompt": "a", "structured_outputs": {"regex": "(["}}, 400, "regex"),
    "regex is too large": (
        COMPLETE,
        {"prompt": "a", "structured_outputs": {"regex": "((a{1000}){1000}){1000}"}},
        400,
        "regex|grammar",
    ),
    "grammar is invalid": (
        COMPLETE,
        {"prompt": "a", "structured_outputs": {"grammar": "start: ("}},
        400,
        "grammar",
    ),
    "two shapes": (
        COMPLETE,
        {"prompt": "a", "structured_outputs": {"regex": "a", "json": {}}},
        400,
        "exactly one of",
    ),
    "no choice": (COMPLETE, {"prompt": "a", "structured_outputs": {"choice": []}}, 400, "choice"),
    # Chats
    "no message": (CHAT, {"messages": []}, 400, "'messages' is wrong"),
    "message is text": (CHAT, {"messages": ["hi"]}, 400, "'messages.0' is wrong"),
    "unknown role": (CHAT, {"messages": [message("root")]}, 400, "'messages.0.role' is wrong"),
    "no content": (CHAT, {"messages": [{"role": "user"}]}, 400, "message 0 has no content"),
    "an image": (
        CHAT,
        {"messages": [message(content=[{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}])]},
        400,
        "'messages.0.content.0",
    ),
    "conversation longer than the context": (
        CHAT,
        {"messages": [message()] * 300},
        400,
        "2714 characters, too many",
    ),
    "chat template in the request": (
        CHAT,
        {"messages": [message()], "chat_template": "{% for a in range(10**9) %}{% endfor %}"},
        400,
        "'chat_template' is wrong",
    ),
    "chat template by another way": (
        CHAT,
        {"messages": [message()], "chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        400,
        "may not set 'chat_template'",
    ),
    "messages by another way": (
        CHAT,
        {"messages": [message()], "chat_template_kwargs": {"messages": "x"}},
        400,
        "may not set 'messages'",
    ),
    "special token by another way": (
        CHAT,
        {"messages": [message()], "chat_template_kwargs": {"bos_token": "x"}},
        400,
        "may not set 'bos_token'",
    ),
    "arguments of a past call nest 900 deep": (
        CHAT,
        {
            "messages": [
                message(),
                message("assistant", None, tool_calls=[past_call('{"a":' * 900 + "1" + "}" * 900)]),
            ]
        },
        400,
        "nest deeper than 64",
    ),
    "self as a template variable": (
        CHAT,
        {"messages": [message()], "chat_template_kwargs": {"self": "x"}},
        400,
        "may not set 'self'",
    ),
    "tokenizer as a template variable": (
        CHAT,
        {"messages": [message()], "chat_template_kwargs": {"tokenizer": "x"}},
        400,
        "may not set 'tokenizer'",
    ),
    "one token of two spellings": (
        COMPLETE,
        {"prompt": "a", "logit_bias": {"01": 1, "1": 2}},
        400,
        "'01', which is no token id",
    ),
    "nested template variable": (
        CHAT,
        {"messages": [message()], "chat_template_kwargs": {"a": {"b": 1}}},
        400,
        "chat_template_kwargs",
    ),
    "tool without tools": (
        CHAT,
        {"messages": [message()], "tool_choice": "required"},
        400,
        "there are no tools",
    ),
    "unknown tool": (
        CHAT,
        {
            "messages": [message()],
            "tools": [tool()],
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
        400,
        "'g', which is not among the tools",
    ),
    "two tools of one name": (
        CHAT,
        {"messages": [message()], "tools": [tool(), tool()]},
        400,
        "the same name",
    ),
    "thousands of tools": (CHAT, {"messages": [message()], "tools": [tool()] * 2000}, 400, "128 tools"),
    "tool call that is no JSON": (
        CHAT,
        {
            "messages": [
                message(
                    "assistant", None, tool_calls=[{"id": "1", "function": {"name": "f", "arguments": "["}}]
                )
            ]
        },
        400,
        "arguments are no JSON object",
    ),
    "stream_options alone": (CHAT, {"messages": [message()], "stream_options": {}}, 400, "needs stream"),
    "suffix": (COMPLETE, {"prompt": "a", "suffix": "b"}, 400, "'suffix' is wrong"),
    # Tokens
    "detokenize past the vocabulary": ("/detokenize", {"tokens": [259]}, 400, "ends at 258"),
    "detokenize text": ("/detokenize", {"tokens": "a"}, 400, "'tokens' is wrong"),
    "tokenize nothing": ("/tokenize", {}, 400, "either prompt or messages"),
    # Places
    "unknown path": ("/v1/engines", {}, 404, "no '/v1/engines' here"),
    "path that climbs": ("/v1/models/..%2f..%2fetc%2fpasswd", {}, 405, "does not take POST"),
}


@pytest.mark.parametrize("name", CASES)
def test_is_refused_and_harms_nobody(served: Served, name: str) -> None:
    path, body, status, sentence = CASES[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with harmless(served):
        answer = httpx.post(
            served.url + path, content=content, headers={"Content-Type": "application/json"}, timeout=20
        )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert re.search(sentence, error["message"]), error["message"]
    assert error["message"][-1] in ".?)"
    assert len(error["message"]) < 600
    assert "Traceback" not in answer.text
