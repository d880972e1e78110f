"""Helpers of all source kinds: the cache folder, hashes, JSON that is checked, how weights are stored."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optpipe.errors import ModelError
from optpipe.sources.source import OpenOptions

if TYPE_CHECKING:
    from optpipe.weights import LazyWeight, Weights

_MAX_JSON = 256 << 20  # bytes; the largest tokenizer.json known is about 40 MB
_PIECE = 1 << 20


def cache_folder(options: OpenOptions) -> Path:
    """Where downloads are kept: ``cache_dir``, $OPTPIPE_CACHE, or optpipe in the user's cache folder."""
    if options.cache_dir is not None:
        return options.cache_dir
    if own := os.environ.get("OPTPIPE_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "optpipe"


def sha256_of(path: Path, options: OpenOptions) -> str:
    """The file's SHA-256, in hex."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            done += len(piece)
            options.report(f"hashing {path.name}", done, total)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object.

    Raises:
        ModelError: it is too large, not JSON, or not an object.
    """
    if path.stat().st_size > _MAX_JSON:
        raise ModelError(f"'{path.name}' is {path.stat().st_size} bytes long, too long for a JSON file.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"'{path.name}' in '{path.parent}' is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise ModelError(f"'{path.name}' in '{path.parent}' holds a {type(content).__name__}, not an object.")
    return content


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_bytes(content)
    partial.replace(path)


def stored_as(weights: Weights) -> str:
    """How most bytes of a model are stored: "bf16", "int4 g32", …"""
    sizes: Counter[str] = Counter()
    for weight in {id(one): one for one in weights.values()}.values():
        sizes[_form(weight)] += weight.nbytes
    return sizes.most_common(1)[0][0] if sizes else "nothing"


def _form(weight: LazyWeight) -> str:
    if weight.grid is not None:
        group = "per channel" if weight.grid.group == -1 else f"g{weight.grid.group}"
        return f"int{weight.grid.bits} {group}"
    name = str(weight.dtype).removeprefix("torch.")
    return {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "float64": "f64"}.get(name, name)
