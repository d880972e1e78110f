"""The text and bytes of single tokens, as log-probabilities name them.

One token may be part of a character. Tokenizers say so in two ways: byte-level ones spell each byte as a
letter of a fixed alphabet; those with a byte fallback have tokens like ``<0xE2>``, and spell a space ``▁``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache

from ..tokenizer import Tokenizer, decode

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """Looks tokens up; each is worked out once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._backend = tokenizer.backend
        self._added = {i: it.content for i, it in self._backend.get_added_tokens_decoder().items()}
        decoder = json.loads(self._backend.to_str()).get("decoder")
        self._byte_level = "ByteLevel" in json.dumps(decoder)
        self._known: dict[int, tuple[str, bytes]] = {}

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token adds to the text."""
        return self._look_up(token)[1]

    def text_of(self, token: int) -> str:
        r"""Its text; ``bytes:\xe2\x82`` when its bytes are no whole characters, as OpenAI writes it."""
        return self._look_up(token)[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of many tokens, special ones too."""
        return decode(self._backend, ids, skip_special_tokens=False)

    def _look_up(self, token: int) -> tuple[str, bytes]:
        found = self._known.get(token)
        if found is None:
            raw = self._bytes(token)
            found = self._known[token] = (_shown(raw), raw)
        return found

    def _bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = self._backend.id_to_token(token)
        if piece is None:  # the model's vocabulary is padded beyond the tokenizer's
            return b""
        if self._byte_level:
            table = _byte_alphabet()
            return b"".join(bytes([table[it]]) if it in table else it.encode() for it in piece)
        if match := _BYTE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return str(piece).replace("▁", " ").encode()


def _shown(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{it:02x}" for it in raw)


@cache
def _byte_alphabet() -> dict[str, int]:
    """Letter → byte, as byte-level tokenizers spell: printable bytes as themselves, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [it for it in range(256) if it not in set(printable)]
    return {chr(it): it for it in printable} | {chr(0x100 + i): it for i, it in enumerate(others)}
