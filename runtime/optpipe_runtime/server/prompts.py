"""Texts, token ids and conversations become prompts.

The text of a conversation comes from the client, its control tokens from the model's template. So a special
token that a client types into a message is hidden from the template's output and encoded as plain letters.
Prompts of /v1/completions are raw: special tokens in them are meant.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

from optpipe.errors import RequestError

from ..chat import render_chat
from ..tokenizer import Tokenizer, encode
from .errors import invalid


@dataclass(frozen=True)
class PromptInput:
    """A prompt that is ready to be submitted.

    Attributes:
        ids: its token ids.
        text: what the client wrote, or None when it sent token ids.
    """

    ids: tuple[int, ...]
    text: str | None


class Encoder:
    """Turns what clients send into token ids. For threads other than the event loop's."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        specials = [
            it.content
            for it in tokenizer.backend.get_added_tokens_decoder().values()
            if it.special and it.content
        ]
        longest_first = sorted(map(re.escape, specials), key=len, reverse=True)
        self._special = re.compile("|".join(longest_first)) if specials else None
        self._literal: Backend | None = None
        self._letters: dict[str, list[int]] = {}
        self._longest: int | None = None
        self._lock = threading.Lock()

    def text(self, text: str, *, add_special_tokens: bool = True, most: int | None = None) -> PromptInput:
        """A raw prompt. Special tokens that it names are special tokens.

        Args:
            most: tokens that it may have; a text that cannot have so few is not tokenized.

        Raises:
            RequestError: it is no text.
            ApiError: it is surely too long.
        """
        check_text(text, "prompt")
        self._check_length(text, most)
        return PromptInput(tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens)), text)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], *, most: int | None = None
    ) -> PromptInput:
        """A conversation as the model's template writes it.

        Args:
            messages, variables: for the template.
            most: tokens that it may have; see :meth:`text`.

        Raises:
            RequestError: there is no template, it refuses the messages, or a text is not valid Unicode.
            ApiError: the conversation is surely too long.
        """
        hidden: dict[str, str] = {}
        mark = secrets.token_hex(8)  # not to be guessed, so that no message can hold a mark itself
        messages = self._hide(list(messages), hidden, mark)
        variables = self._hide(variables, hidden, mark)
        rendered = render_chat(self._tokenizer, messages, **variables)
        self._check_length(rendered, most)
        if not hidden:
            return PromptInput(tuple(self._tokenizer.encode(rendered, add_special_tokens=False)), None)
        ids: list[int] = []
        for piece in re.split("(" + "|".join(map(re.escape, hidden)) + ")", rendered):
            if piece in hidden:
                ids += self._literally(hidden[piece])
            elif piece:
                ids += self._tokenizer.encode(piece, add_special_tokens=False)
        return PromptInput(tuple(ids), None)

    def is_special(self, token: str) -> bool:
        """Whether the tokenizer marks this text as a special token, which is left out of answers."""
        return self._special is not None and self._special.fullmatch(token) is not None

    def _hide(self, value: Any, hidden: dict[str, str], mark: str) -> Any:
        """``value`` with each special token in its texts replaced by a mark."""
        if isinstance(value, str):
            check_text(value, "messages")
            if self._special is None:
                return value

            def replace(match: re.Match[str]) -> str:
                name = f"\ue000{mark}{self._numbered(match[0])}\ue001"
                hidden[name] = match[0]
                return name

            return self._special.sub(replace, value)
        if isinstance(value, dict):
            return {self._hide(k, hidden, mark): self._hide(v, hidden, mark) for k, v in value.items()}
        if isinstance(value, list):
            return [self._hide(it, hidden, mark) for it in value]
        return value

    def _check_length(self, text: str, most: int | None) -> None:
        """Refuse without tokenizing, which takes seconds for megabytes."""
        if most is None or len(text) <= most:
            return
        if self._longest is None:
            self._longest = max(map(len, self._tokenizer.backend.get_vocab()))
        if len(text) > most * self._longest:
            raise invalid(
                f"The prompt has {len(text)} characters, too many for the {most} tokens of a prompt here.",
                "prompt",
                "context_length_exceeded",
            )

    def _numbered(self, special: str) -> int:
        found = self._tokenizer.id_of(special)
        assert found is not None, f"{special = } is in the vocabulary"
        return found

    def _literally(self, text: str) -> list[int]:
        """A special token's text as plain letters; each is worked out once."""
        with self._lock:
            if self._literal is None:  # a copy: the switch holds for the whole tokenizer
                self._literal = Backend.from_str(self._tokenizer.backend.to_str())
                self._literal.encode_special_tokens = True
            if text not in self._letters:
                self._letters[text] = encode(self._literal, text, add_special_tokens=False)
            return self._letters[text]


def check_text(text: str, name: str) -> None:
    """Refuse half of a surrogate pair.

    Raises:
        RequestError: the text cannot be encoded.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{name} holds half of a surrogate pair, which is no text.") from None
