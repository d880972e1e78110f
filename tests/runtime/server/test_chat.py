"""/v1/chat/completions in detail: what the template gets, special tokens, tools, forms."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from optpipe_runtime.server.schema.chat import ChatAnswer
from optpipe_runtime.tokenizer import Tokenizer

from .kit import BOS, EOS, LetterExecutor, ScriptExecutor, Served, ids, serve, tokenizer
from .test_completions import chunks

USER, ASSISTANT = "user: {}\nassistant: ", "assistant: "
SCRIPTS = {
    "user: unicode\nassistant: ": "héllo ✓ 你好",
    "user: twice\nassistant: ": '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>\n'
    '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
    "user: broken\nassistant: ": "<tool_call>{oh</tool_call> well",
    "user: unclosed\nassistant: ": '<tool_call>{"name": "f", "arguments": {}}',
}
TOOLS = [{"type": "function", "function": {"name": it, "parameters": {"type": "object"}}} for it in "fg"]


@pytest.fixture(scope="module")
def chatty() -> Iterator[Served]:
    with serve(ScriptExecutor(SCRIPTS, cost=lambda step: 0.0005), context=2048, num_blocks=2048) as it:
        yield it


def prompt_of(served: Served, messages: list[dict[str, Any]], **fields: Any) -> list[int]:
    answer = served.post("/tokenize", {"messages": messages, **fields})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["tokens"])


def prompt_text(served: Served, messages: list[dict[str, Any]], **fields: Any) -> str:
    return str(served.post("/detokenize", {"tokens": prompt_of(served, messages, **fields)}).json()["prompt"])


def user(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_the_template_writes_the_prompt(chatty: Served) -> None:
    assert prompt_of(chatty, user("hi")) == [BOS, *ids("user: hi\nassistant: ")]


def test_parts_of_text_are_joined_and_developers_are_the_system(chatty: Served) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = prompt_text(chatty, [{"role": "developer", "content": "be kind"}, *user(parts)])
    assert found == "<s>system: be kind\nuser: ab\nassistant: "


def test_the_form_is_that_of_the_schema(chatty: Served) -> None:
    for fields in ({}, {"logprobs": True, "top_logprobs": 2}, {"n": 2}, {"tools": TOOLS}):
        ChatAnswer.model_validate(chatty.chat("unicode", **fields).json())


@pytest.mark.parametrize(
    "messages",
    [
        user("a</s>b<s>"),
        user([{"type": "text", "text": "</s>"}]),
        [{"role": "system", "content": "<pad></s>"}, *user("hi")],
        [*user("x"), {"role": "assistant", "content": "</s>"}, *user("hi")],
    ],
)
def test_special_tokens_in_messages_are_letters(chatty: Served, messages: list[dict[str, Any]]) -> None:
    found = prompt_of(chatty, messages)
    assert found.count(BOS) == 1  # the template's own
    assert EOS not in found
    written = chatty.post("/detokenize", {"tokens": found}).json()["prompt"]
    assert json.dumps(messages).count("</s>") == written.count("</s>")


def test_special_tokens_in_tools_and_variables_are_letters() -> None:
    template = (
        "{{ bos_token }}{{ style }}{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    tokens: Tokenizer = dataclasses.replace(tokenizer(), chat_template=template)
    with serve(tokens=tokens, context=1024) as served:
        tools = [{"type": "function", "function": {"name": "f", "description": "</s>"}}]
        found = prompt_of(served, user("x"), tools=tools, chat_template_kwargs={"style": "<s></s>"})
        assert (found.count(BOS), found.count(EOS)) == (1, 0)


def test_a_model_without_a_template_chats_not() -> None:
    with serve(tokens=dataclasses.replace(tokenizer(), chat_template=None)) as served:
        answer = served.chat("hi")
        assert answer.status_code == 400
        assert "no chat template" in answer.json()["error"]["message"]
        assert served.complete(max_tokens=1).status_code == 200


def test_a_hostile_template_of_the_model_is_stopped() -> None:
    template = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
    with serve(tokens=dataclasses.replace(tokenizer(), chat_template=template)) as served:
        assert served.chat("hi").status_code == 400
        assert served.complete(max_tokens=1).status_code == 200


def test_characters_are_whole_in_every_piece(chatty: Served) -> None:
    pieces = [
        it["choices"][0]["delta"].get("content", "")
        for it in chunks(chatty.chat("unicode", stream=True).text)
    ]
    assert "".join(pieces) == "héllo ✓ 你好"
    assert len(pieces) > 5
    assert not [it for it in pieces if "\ufffd" in it]


def test_several_tools_are_called_at_once(chatty: Served) -> None:
    choice = chatty.chat("twice", tools=TOOLS).json()["choices"][0]
    assert choice["message"]["content"] is None
    assert [it["function"]["name"] for it in choice["message"]["tool_calls"]] == ["f", "g"]
    assert choice["finish_reason"] == "tool_calls"
    assert len({it["id"] for it in choice["message"]["tool_calls"]}) == 2
    one = chatty.chat("twice", tools=TOOLS, parallel_tool_calls=False).json()["choices"][0]
    assert [it["function"]["name"] for it in one["message"]["tool_calls"]] == ["f"]


def test_several_tools_stream_with_their_places(chatty: Served) -> None:
    calls = [
        call
        for it in chunks(chatty.chat("twice", tools=TOOLS, stream=True).text)
        for call in it["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert [(it["index"], it["function"]["name"]) for it in calls] == [(0, "f"), (1, "g")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_none_stays_text(chatty: Served, stream: bool) -> None:
    answer = chatty.chat("broken", tools=TOOLS, stream=stream)
    if stream:
        pieces = [it["choices"][0] for it in chunks(answer.text)]
        found = "".join(it["delta"].get("content", "") for it in pieces)
        reason = pieces[-1]["finish_reason"]
    else:
        (choice,) = answer.json()["choices"]
        found, reason = choice["message"]["content"], choice["finish_reason"]
    assert (found, reason) == ("<tool_call>{oh</tool_call> well", "stop")


def test_a_call_without_its_end_mark_is_one(chatty: Served) -> None:
    (choice,) = chatty.chat("unclosed", tools=TOOLS).json()["choices"]
    assert [it["function"]["name"] for it in choice["message"]["tool_calls"]] == ["f"]


def test_without_tools_nothing_is_looked_for(chatty: Served) -> None:
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        (choice,) = chatty.chat("unclosed", **fields).json()["choices"]
        assert choice["message"]["content"].startswith("<tool_call>")
        assert choice["finish_reason"] == "stop"


def test_a_template_that_knows_no_tools_is_told_in_the_system_message(chatty: Served) -> None:
    found = prompt_text(chatty, user("x"), tools=TOOLS)
    assert found.startswith("<s>system: # Tools")
    assert '"name": "f"' in found
    both = prompt_text(chatty, [{"role": "system", "content": "Be brief."}, *user("x")], tools=TOOLS)
    assert both.startswith("<s>system: Be brief.\n\n# Tools")


def test_past_calls_reach_the_template_as_values() -> None:
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}"
        "{{ m.tool_call_id }}{% endfor %}"
    )
    with serve(tokens=dataclasses.replace(tokenizer(), chat_template=template)) as served:
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Rome"}'}}
        messages = [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
        ]
        assert prompt_text(served, messages) == "Romec1"


def test_variables_reach_the_template() -> None:
    template = "{{ enable_thinking }}{{ messages | length }}"
    with serve(tokens=dataclasses.replace(tokenizer(), chat_template=template)) as served:
        assert prompt_text(served, user("x"), chat_template_kwargs={"enable_thinking": False}) == "False1"


def test_marks_of_calls_that_are_special_tokens_are_seen() -> None:
    """Some tokenizers mark them so; other special tokens are still left out without tools."""
    backend = Backend.from_str(tokenizer().backend.to_str())
    backend.add_special_tokens(["<tool_call>", "</tool_call>"])
    opened, closed = backend.token_to_id("<tool_call>"), backend.token_to_id("</tool_call>")
    answer = [opened, *ids('{"name": "f", "arguments": {}}'), closed, EOS]

    class Executor(LetterExecutor):
        def row(self, tokens: Sequence[int]) -> np.ndarray:
            marker = ids("assistant: ")
            end = next(i for i in range(len(tokens), 0, -1) if list(tokens[i - len(marker) : i]) == marker)
            values = super().row(tokens)
            values[answer[min(len(tokens) - end, len(answer) - 1)]] += 100
            return values

    tokens = dataclasses.replace(tokenizer(), backend=backend)
    with serve(Executor(vocab=261), tokens=tokens, context=1024) as served:
        (choice,) = served.chat("x", tools=TOOLS).json()["choices"]
        assert [it["function"]["name"] for it in choice["message"]["tool_calls"]] == ["f"]
        (plain,) = served.chat("x").json()["choices"]
        assert plain["message"]["content"] == '{"name": "f", "arguments": {}}'


def test_two_limits_of_tokens_are_one(chatty: Served) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        assert chatty.chat("unicode", **{name: 3}).json()["usage"]["completion_tokens"] == 3
