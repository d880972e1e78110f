"""Log-probabilities in the forms of the two APIs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..sampling.logprobs import TokenLogprobs
from .token_text import TokenTexts

LOWEST = -9999.0  # what OpenAI writes for a probability of 0: JSON has no -inf


def completion_logprobs(
    texts: TokenTexts, tokens: Sequence[int], entries: Sequence[TokenLogprobs | None], offset: int
) -> dict[str, list[Any]]:
    """Four lists of one length, as /v1/completions has them.

    Args:
        tokens: [T] ids.
        entries: [T], None for a token that nothing predicts.
        offset: where the first token's text begins in the whole text, in characters.
    """
    shown = [texts.text_of(it) for it in tokens]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(texts.bytes_of(token).decode(errors="ignore"))
    return {
        "tokens": shown,
        "token_logprobs": [None if it is None else finite(it.logprob) for it in entries],
        "top_logprobs": [None if it is None else _by_text(texts, it) for it in entries],
        "text_offset": offsets,
    }


def chat_logprobs(texts: TokenTexts, entries: Sequence[TokenLogprobs], top: int) -> dict[str, Any]:
    """A list of objects, as /v1/chat/completions has it.

    Args:
        top: how many alternatives to show.
    """
    content = [
        _one(texts, it.token, it.logprob) | {"top_logprobs": [_one(texts, *pair) for pair in it.top[:top]]}
        for it in entries
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(
    texts: TokenTexts, entries: Sequence[TokenLogprobs | None]
) -> list[dict[str, Any] | None]:
    """By token id, for each token of the prompt; None for the first, which nothing predicts."""
    found: list[dict[str, Any] | None] = []
    for entry in entries:
        pairs = [] if entry is None else [(entry.token, entry.logprob), *entry.top]
        by_id = {str(i): {"logprob": finite(value), "decoded_token": texts.text_of(i)} for i, value in pairs}
        found.append(by_id or None)
    return found


def finite(value: float) -> float:
    """A logprob that JSON can write."""
    return max(value, LOWEST)


def _by_text(texts: TokenTexts, entry: TokenLogprobs) -> dict[str, float]:
    """Alternatives by text, the token that came too; of two tokens with one text the likelier stays."""
    found: dict[str, float] = {}
    for token, value in [*entry.top, (entry.token, entry.logprob)]:
        text = texts.text_of(token)
        found[text] = max(finite(value), found.get(text, LOWEST))
    return found


def _one(texts: TokenTexts, token: int, value: float) -> dict[str, Any]:
    return {"token": texts.text_of(token), "logprob": finite(value), "bytes": list(texts.bytes_of(token))}
