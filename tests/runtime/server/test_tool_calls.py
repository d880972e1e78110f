"""Calls are found wherever the text is cut into pieces."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpipe_runtime.server.errors import ApiError
from optpipe_runtime.server.schema.chat import Tool
from optpipe_runtime.server.tool_calls import (
    CallFinder,
    calls_of,
    instructions,
    named_schema,
    required_schema,
)

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


def test_definitions_move_to_where_references_look() -> None:
    place = {"$defs": {"P": {"type": "string"}}, "type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}}
    schema = required_schema([tool("f", **place), tool("g", **place)], parallel=True)
    assert schema["$defs"] == {"P": {"type": "string"}}
    assert "$defs" not in json.dumps(schema["items"]).replace("#/$defs/P", "")
    with pytest.raises(ApiError, match="differently"):
        required_schema([tool("f", **place), tool("g", **{**place, "$defs": {"P": {}}})], parallel=True)


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
