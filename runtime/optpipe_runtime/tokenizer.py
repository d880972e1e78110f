"""Text to token ids and back, from the ``tokenizer.json`` of a model folder. No transformers."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.decoders import DecodeStream

from optpipe.errors import ArtifactError

TAIL = 16  # tokens of a prompt that decide how the first token behind it is spelt
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Tokenizer:
    """A model folder's tokenizer.

    Attributes:
        backend: the tokenizer itself.
        special: the texts of special tokens that the folder names, ``{"bos_token": "<s>", …}``.
        chat_template: the source of the chat template, or None when the folder has none.
    """

    backend: Backend
    special: dict[str, str]
    chat_template: str | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. A chat template's output has its special tokens already."""
        return encode(self.backend, text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return decode(self.backend, ids, skip_special_tokens=True)

    def id_of(self, token: str) -> int | None:
        """The id of one token, or None when the vocabulary lacks it."""
        found: int | None = self.backend.token_to_id(token)
        return found

    def stream(self, prompt: Sequence[int] = (), *, skip_special_tokens: bool = True) -> TextStream:
        """A decoder that takes token ids one by one, after those of a prompt that is not shown."""
        return TextStream(self, prompt, skip_special_tokens)


def encode(backend: Backend, text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a text. The batched call lets other threads run meanwhile, the plain one does not."""
    return list(backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)


def decode(backend: Backend, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """The text of token ids; other threads run meanwhile."""
    return str(backend.decode_batch([list(ids)], skip_special_tokens=skip_special_tokens)[0])


class TextStream:
    """Decodes token by token; text comes out once its characters are whole."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], skip_special_tokens: bool = True) -> None:
        self._backend = tokenizer.backend
        self._skip = skip_special_tokens
        self._tail = list(prompt[-TAIL:])
        self._stream = DecodeStream(self._tail, skip_special_tokens=skip_special_tokens)

    def push(self, token: int) -> str:
        """The text that ``token`` completes; empty while a character is not whole."""
        try:
            text = self._stream.step(self._backend, token)
        except Exception:  # bare, when bytes that are no text change what came before them: begin again
            self._stream = DecodeStream(self._tail, skip_special_tokens=self._skip)
            text = None
        self._tail = [*self._tail[-TAIL:], token]
        return text or ""


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read a model folder's tokenizer, special tokens and chat template.

    Raises:
        ArtifactError: there is no ``tokenizer.json``, or a file cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ArtifactError(
            f"'{folder}' has no tokenizer.json, so text cannot be turned into tokens.",
            hint="the model source must have a fast tokenizer",
        )
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ArtifactError(f"The tokenizer of '{folder}' cannot be read: {error}.") from error
    _give_back()
    settings = _read(folder / "tokenizer_config.json")
    special = _special(_read(folder / "special_tokens_map.json")) | _special(settings)
    return Tokenizer(backend, special, _template(folder, settings))


def _give_back() -> None:
    """Return the C heap's free pages to the system, where the C library (glibc) can.

    Reading leaves many of them between what it keeps: a vocabulary of 262,144 held 300 MB without this and
    100 MB with it. It takes 14 ms there, and 2 ms for 49,152.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def stop_ids(folder: Path, tokenizer: Tokenizer | None) -> frozenset[int]:
    """The ids that end a text, by generation_config.json, else config.json, else the tokenizer."""
    for name in ("generation_config.json", "config.json"):
        value = _read(folder / name).get("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(isinstance(one, int) for one in ids):
                raise ArtifactError(f"'{name}' in '{folder}' has the eos_token_id {value}, no token id.")
            return frozenset(ids)
    eos = None if tokenizer is None else tokenizer.id_of(tokenizer.special.get("eos_token", ""))
    return frozenset() if eos is None else frozenset([eos])


def context_length(folder: Path) -> int | None:
    """The most positions that the model was made for, or None when its config does not say."""
    config = _read(folder / "config.json")
    for place in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"):
            if isinstance(place.get(key), int):
                return int(place[key])
    return None


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ArtifactError(f"'{path}' is not UTF-8 text.") from None
    found = settings.get("chat_template")
    if isinstance(found, list):  # several templates by name
        found = _default(found)
    return found if isinstance(found, str) else None


def _default(templates: Iterable[Any]) -> str | None:
    for it in templates:
        if isinstance(it, dict) and it.get("name") == "default":
            return str(it.get("template"))
    return None


def _special(settings: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name in SPECIAL:
        value = settings.get(name)
        if isinstance(value, dict):  # an added token with its flags
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"'{path}' cannot be read as JSON: {error}.") from error
    return value if isinstance(value, dict) else {}
