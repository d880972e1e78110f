"""The page names every field, and the bounds that the code has."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from optpipe_runtime.sampling import SamplingParams, params, structured
from optpipe_runtime.sampling.grammar import SECONDS
from optpipe_runtime.sampling.grammar_child import MEMORY
from optpipe_runtime.sampling.llguidance_adapter import WHITESPACE

PAGE = (Path(__file__).parents[3] / "docs" / "sampling.md").read_text(encoding="utf-8")
SHOWN_ELSEWHERE = {"skip_special_tokens", "include_stop_str_in_output"}


@pytest.mark.parametrize("field", sorted({it.name for it in fields(SamplingParams)} - SHOWN_ELSEWHERE))
def test_every_field_is_on_the_page(field: str) -> None:
    assert f"`{field}`" in PAGE


@pytest.mark.parametrize(
    "row",
    [
        f"| `n` | 1 | {params.MAX_N} |",
        f"| `temperature` | 0 | {params.MAX_TEMPERATURE:g} |",
        f"| `top_k` | -1 | {params.MAX_TOP_K:,} |",
        "| `repetition_penalty` | {:g} | {:g} |".format(*params.REPETITION_PENALTIES),
        f"`frequency_penalty` | -{params.MAX_PENALTY:g} | {params.MAX_PENALTY:g} |",
        f"| {params.MAX_BIAS:g}, of {params.MAX_LOGIT_BIASES:,} tokens |",
        f"`prompt_logprobs` | 0 | {params.MAX_LOGPROBS} |",
        f"| `max_tokens` | 1 | {params.MAX_TOKENS:,} and the context |",
        f"{params.MAX_STOP_STRINGS} strings of {params.MAX_STOP_CHARACTERS} characters",
        f"| `stop_token_ids` | | {params.MAX_STOP_TOKEN_IDS:,} |",
        f"{params.MAX_BAD_WORDS:,} of {params.MAX_BAD_WORD_CHARACTERS} characters",
        f"| `allowed_token_ids` | 1 | {params.MAX_ALLOWED_TOKEN_IDS:,} |",
        f"stopped after {SECONDS:g} seconds or {MEMORY >> 20} MiB",
        f"{structured.MAX_SOURCE_CHARACTERS:,} characters",
        f"nest {structured.MAX_NESTING} levels",
    ],
)
def test_every_bound_is_the_codes(row: str) -> None:
    assert row in PAGE


def test_the_white_space_is_the_codes() -> None:
    assert WHITESPACE.endswith("{1,64}") and "at most 64\n" in PAGE
