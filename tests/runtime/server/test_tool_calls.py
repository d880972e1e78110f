"""Calls are found wherever the text is cut into pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpipe_runtime.sampling.llguidance_adapter import matcher
from optpipe_runtime.sampling.llguidance_adapter import tokenizer as grammar_tokenizer
from optpipe_runtime.server.schema.chat import Tool
from optpipe_runtime.server.tool_calls import (
    CallFinder,
    calls_of,
    instructions,
    named_schema,
    required_schema,
)

from .kit import EOS, VOCAB, LetterExecutor, Served, ids, serve, tokenizer

CALL = '<tool_call>{"name": "f", "arguments": {"x": "<tool"}}</tool_call>'
TEXTS = {
    "plain <b>text</b> <tool": ("plain <b>text</b> <tool", []),
    f"before {CALL}": ("before ", ["f"]),
    f"{CALL}\n{CALL}\nafter": ("after", ["f", "f"]),
    "<tool_call>nothing</tool_call>": ("<tool_call>nothing</tool_call>", []),
    '<tool_call>{"name": 7}</tool_call>': ('<tool_call>{"name": 7}</tool_call>', []),
    '<tool_call>{"name": "f", "parameters": {}}': ("", ["f"]),
    '<tool_call>{"name": "f", ': ('<tool_call>{"name": "f", ', []),
    "<" * 40: ("<" * 40, []),
}


def found_in(pieces: list[str]) -> tuple[str, list[str]]:
    finder = CallFinder()
    results = [finder.push(it) for it in pieces] + [finder.finish()]
    return "".join(text for text, _ in results), [call.name for _, calls in results for call in calls]


@given(st.sampled_from(sorted(TEXTS)), st.sets(st.integers(0, 140)))
def test_however_the_text_is_cut(text: str, cuts: set[int]) -> None:
    places = [0, *sorted(it for it in cuts if it < len(text)), len(text)]
    assert found_in([text[a:b] for a, b in pairwise(places)]) == TEXTS[text]


def test_text_before_a_call_is_not_held_back() -> None:
    finder = CallFinder()
    assert finder.push("hello <tool_")[0] == "hello "
    assert finder.push("box>")[0] == "<tool_box>"


def tool(name: str, **parameters: object) -> Tool:
    return Tool.model_validate(
        {"type": "function", "function": {"name": name, "parameters": parameters or None}}
    )


def test_the_schema_of_calls_names_each_tool() -> None:
    schema = required_schema([tool("f", type="object"), tool("g")], parallel=False)
    assert [it["properties"]["name"] for it in schema["items"]["anyOf"]] == [{"const": "f"}, {"const": "g"}]
    assert (schema["minItems"], schema["maxItems"]) == (1, 1)


def takes(schema: dict[str, Any], call: Any) -> bool:
    """Whether a grammar of ``schema`` lets a model write a list of one call."""
    backend = tokenizer().backend
    grammar = matcher(grammar_tokenizer(backend.to_str(), VOCAB, [EOS]), "json_schema", json.dumps(schema))
    assert not grammar.get_error()
    text = ids(json.dumps([call]))
    return bool(grammar.validate_tokens(text) == len(text))


@pytest.mark.parametrize(
    ("parameters", "right", "wrong"),
    [
        ({"$defs": {"d": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/d"}}}, "a", 1),
        ({"definitions": {"d": {"type": "null"}}, "properties": {"x": {"$ref": "#/definitions/d"}}}, None, 1),
        ({"properties": {"y": {"type": "string"}, "x": {"$ref": "#/properties/y"}}}, "a", 1),
        ({"properties": {"x": {"$ref": "#"}}, "additionalProperties": False}, {"x": {}}, {"y": 1}),
        ({"properties": {"x": {"type": "object", "properties": {"$ref": {"type": "string"}}}}},
         {"$ref": "#"}, {"$ref": 1}),
        ({"properties": {"x": {"const": {"$ref": "#"}}}}, {"$ref": "#"}, {"$ref": "#/items"}),
    ],
)  # fmt: skip
def test_references_mean_what_they_meant_in_the_tool(
    parameters: dict[str, Any], right: Any, wrong: Any
) -> None:
    other = {"$defs": {"d": {"type": "integer"}}, "type": "object"}  # of the same name
    schema = required_schema([tool("g", **other), tool("f", type="object", **parameters)], parallel=True)
    assert takes(schema, {"name": "f", "arguments": {"x": right}})
    assert not takes(schema, {"name": "f", "arguments": {"x": wrong}})


def test_a_named_tool_gives_its_own_schema() -> None:
    assert named_schema([tool("f", type="object"), tool("g", type="array")], "g") == {"type": "array"}
    assert named_schema([tool("f")], "f") == {"type": "object"}


@pytest.mark.parametrize("text", ["", "[", '[{"name": "f"}]', "7", '{"name": "f"}', "[" * 20_000])
def test_a_list_that_was_cut_short_has_no_calls(text: str) -> None:
    assert calls_of(text) == []


def test_instructions_hold_every_tool_as_json() -> None:
    text = instructions([{"name": "f{}"}, {"name": "g"}])
    assert '{"name": "f{}"}\n{"name": "g"}' in text
    assert '{"name": "function name"' in text


@pytest.fixture(scope="module")
def roomy() -> Iterator[Served]:
    with serve(LetterExecutor(), context=1024) as it:
        yield it


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
@pytest.mark.parametrize(
    "parameters",
    [
        {"$defs": [1]},
        {"$defs": "x"},
        {"definitions": 7},
        {"properties": ["x"]},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}},
    ],
)
def test_parameters_that_are_no_schema_are_refused(roomy: Served, parameters: Any, choice: Any) -> None:
    asked = tool("f", **parameters).model_dump()
    answer = roomy.chat(max_tokens=8, tools=[asked], tool_choice=choice)
    assert answer.status_code == 400, answer.text
    assert roomy.engine.stats().failed_steps == 0
