"""``optpipe.json``: what an artifact says about itself. Imports nothing heavy.

The manifest lists every other file with its size and SHA-256, and seals itself: ``seal`` is the hash of its
own content without the seal, so that no flipped byte goes unnoticed. Hashes find damage, not malice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ArtifactError

NAME = "optpipe.json"
FORMAT = 1
_MAX_BYTES = 256 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class FileEntry:
    """One file of the folder.

    Attributes:
        bytes: its size.
        sha256: its hash, hex.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CacheTensor:
    """One cache that the graph takes as an input: its name and type, ``f32[P, 16, 3, 64]``."""

    name: str
    type: str


@dataclass(frozen=True)
class CacheNeeds:
    """What a paged graph needs besides its weights.

    Attributes:
        block: tokens a block.
        bytes_per_token: over all caches, in the dtypes of the graph.
        tensors: the caches, in the order of the graph's inputs.
    """

    block: int
    bytes_per_token: int
    tensors: tuple[CacheTensor, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of ``optpipe.json``.

    Attributes:
        pipeline: the full pipeline, which can be run again from its text.
        passes: a record a pass: counts, remarks, measured numbers, seconds.
        quality: what was measured over the whole pipeline; empty when that was switched off.
        source: the model: kind, where, hashes.
        versions: of optpipe and what made the artifact with it.
        cache: None when the graph has no cache and runs one sequence at a time.
        hf_loadable: transformers loads the folder as it is.
        hf_obstacle: why it does not.
        export_obstacle: why `optpipe export` cannot even write a plain folder from it, or None.
        transposed: quantized weights that the model's own modules hold inputs first.
        files: every file but the manifest.
        format: of the folder.
    """

    pipeline: str
    passes: tuple[dict[str, Any], ...]
    quality: dict[str, Any]
    source: dict[str, Any]
    versions: dict[str, str]
    cache: CacheNeeds | None
    hf_loadable: bool
    hf_obstacle: str | None
    export_obstacle: str | None = None
    transposed: tuple[str, ...] = ()
    files: dict[str, FileEntry] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """For JSON, without the seal."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``optpipe.json``, sealed."""
    content = manifest.to_json()
    path = folder / NAME
    path.write_text(json.dumps(content | {"seal": _seal(content)}, indent=1, ensure_ascii=True) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``optpipe.json``.

    Raises:
        ArtifactError: there is none, or it is damaged, or of a newer format.
    """
    content = _read_json(folder)
    version = content.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _damaged(folder, "does not say its format")
    if version > FORMAT:
        raise ArtifactError(
            f"The artifact '{folder}' is of format {version}; this optpipe reads up to format {FORMAT}.",
            hint="a newer optpipe made it: upgrade optpipe",
        )
    seal = content.pop("seal", None)
    if seal != _seal(content):
        raise _damaged(folder, "was changed after it was written: its seal does not match")
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, f"lacks something or holds it wrongly: {error}") from None


def check_file_name(name: str) -> str:
    """The name, if an artifact may hold a file of that name.

    Raises:
        ValueError: it is hidden, has a folder in it, or characters that mean something elsewhere.
    """
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"the file name {name[:80]!r} is not allowed")
    return name


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    if path.is_symlink():
        raise ArtifactError(f"'{NAME}' in the artifact '{folder}' is a link; artifacts hold plain files.")
    if not path.is_file():
        raise ArtifactError(
            f"'{folder}' is not an optpipe artifact: it has no '{NAME}'.",
            hint="`optpipe optimize MODEL -o DIR` makes one",
        )
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise _damaged(folder, f"is {size} bytes long")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise _damaged(folder, "is not valid JSON") from None
    if not isinstance(content, dict):
        raise _damaged(folder, "holds no object")
    return content


def _parse(content: Mapping[str, Any]) -> Manifest:
    files = {
        check_file_name(name): FileEntry(_count(entry["bytes"]), _hash(entry["sha256"]))
        for name, entry in _typed(content["files"], dict).items()
    }
    return Manifest(
        pipeline=_typed(content["pipeline"], str),
        passes=tuple(_typed(record, dict) for record in _typed(content["passes"], list)),
        quality=_typed(content["quality"], dict),
        source=_typed(content["source"], dict),
        versions={key: _typed(text, str) for key, text in _typed(content["versions"], dict).items()},
        cache=None if content["cache"] is None else _cache(content["cache"]),
        hf_loadable=_typed(content["hf_loadable"], bool),
        hf_obstacle=_optional(content["hf_obstacle"], str),
        export_obstacle=_optional(content["export_obstacle"], str),
        transposed=tuple(_typed(name, str) for name in _typed(content["transposed"], list)),
        files=files,
        format=content["format"],
    )


def _cache(content: Mapping[str, Any]) -> CacheNeeds:
    tensors = tuple(
        CacheTensor(_typed(one["name"], str), _typed(one["type"], str)) for one in content["tensors"]
    )
    return CacheNeeds(_count(content["block"]), _count(content["bytes_per_token"]), tensors)


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} is expected where a {type(value).__name__} stands")
    return value


def _optional(value: Any, kind: type) -> Any:
    return None if value is None else _typed(value, kind)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("a count is expected to be a whole number from 0 on")
    return value


def _hash(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError("a hash is expected to be 64 hexadecimal digits")
    return value


def _seal(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content in one canonical form, whatever the spaces in the file."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _damaged(folder: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"'{NAME}' in the artifact '{folder}' {what}.", hint="make or copy the artifact again"
    )
