"""The header of a GGUF file, read with every length and offset checked against the file.

    "GGUF" | u32 version | u64 tensors | u64 keys | keys … | tensor infos … | padding | tensor data

A key is a string, a u32 type and a value; a tensor info is a string, u32 dimensions (fastest first), a
u32 ggml type and a u64 offset from the start of the data.

Source: the GGUF specification, ggml docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optpipe.errors import ModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_DIMENSIONS = 4  # ggml's GGML_MAX_DIMS
_DEFAULT_ALIGNMENT = 32  # bytes; general.alignment overrides it


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies. ``shape`` is in torch's order; ``offset`` is from the start of the file."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """What the header says."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """What `general.architecture` says."""
        return str(self.metadata["general.architecture"])


def read_gguf(path: Path) -> GgufFile:
    """Read and check the header of a GGUF file; no tensor is read.

    Raises:
        ModelError: the file is not GGUF, is cut short, or says something impossible.
    """
    size = path.stat().st_size
    if size < 24:
        raise ModelError(f"'{path.name}' is {size} bytes long, too short to be a GGUF file.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Reader(path, data, size).read()


def ggml_sizes(ggml_type: int) -> tuple[str, int, int] | None:
    """(name, elements a block, bytes a block) of a ggml type, or None when it is unknown."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(ggml_type)
    except ValueError:
        return None
    return (kind.name, *GGML_QUANT_SIZES[kind]) if kind in GGML_QUANT_SIZES else None


class _Reader:
    """A cursor over the header that never leaves the file."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size, 0

    def wrong(self, what: str) -> ModelError:
        return ModelError(
            f"The GGUF file '{self.path.name}' {what}.", hint="the file may be cut short: fetch it again"
        )

    def unpack(self, layout: str) -> tuple[Any, ...]:
        width = struct.calcsize("<" + layout)
        self.need(width)
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += width
        return values

    def need(self, nbytes: int) -> None:
        if nbytes > self.size - self.at:
            raise self.wrong(f"ends at byte {self.size}, inside its header (at byte {self.at})")

    def string(self) -> str:
        (length,) = self.unpack("Q")
        self.need(length)
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong(f"has text that is not UTF-8 before byte {self.at}") from None

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise self.wrong(f"has a value of unknown type {kind} at byte {self.at}")
        element, count = self.unpack("IQ")
        if element in _SCALARS:
            self.need(count * struct.calcsize("<" + _SCALARS[element]))
            return list(self.unpack(f"{count}{_SCALARS[element]}"))
        if element != _STRING:
            raise self.wrong(f"has an array of type {element} at byte {self.at}")
        self.need(8 * count)  # a string is at least its length
        return [self.string() for _ in range(count)]

    def read(self) -> GgufFile:
        if self.data[:4] != _MAGIC:
            raise ModelError(f"'{self.path.name}' is not a GGUF file: it does not start with 'GGUF'.")
        self.at = 4
        version, tensor_count, key_count = self.unpack("IQQ")
        if version not in _VERSIONS:
            raise self.wrong(f"is of version {version}, and versions 2 and 3 are read")
        self.need(12 * key_count + 24 * tensor_count)  # the least that so many entries take
        metadata = self.keys(key_count)
        infos = self.infos(tensor_count)
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self.wrong(f"has the alignment {alignment!r}, which is not a power of two")
        start = -(-self.at // alignment) * alignment
        return GgufFile(self.path, metadata, {info[0]: self.place(info, start) for info in infos})

    def keys(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self.string()
            if key in metadata:
                raise self.wrong(f"has the key '{key[:80]}' twice")
            metadata[key] = self.value(self.unpack("I")[0])
        if not isinstance(metadata.get("general.architecture"), str):
            raise self.wrong("does not say its architecture")
        return metadata

    def infos(self, count: int) -> list[tuple[str, tuple[int, ...], int, int]]:
        infos, seen = [], set()
        for _ in range(count):
            name = self.string()
            if name in seen:
                raise self.wrong(f"has the tensor '{name[:80]}' twice")
            seen.add(name)
            (rank,) = self.unpack("I")
            if not 1 <= rank <= _MAX_DIMENSIONS:
                raise self.wrong(f"has a tensor '{name[:80]}' of {rank} dimensions")
            shape = tuple(reversed(self.unpack(f"{rank}Q")))
            ggml_type, offset = self.unpack("IQ")
            infos.append((name, shape, ggml_type, offset))
        return infos

    def place(self, info: tuple[str, tuple[int, ...], int, int], start: int) -> GgufTensor:
        name, shape, ggml_type, offset = info
        sizes = ggml_sizes(ggml_type)
        if sizes is None:
            raise self.wrong(f"has a tensor '{name[:80]}' of unknown ggml type {ggml_type}")
        kind, per_block, block_bytes = sizes
        if 0 in shape or shape[-1] % per_block:
            raise self.wrong(f"has a {kind} tensor '{name[:80]}' of shape {shape}, not whole blocks")
        nbytes = math.prod(shape) // per_block * block_bytes
        if start + offset + nbytes > self.size:
            raise self.wrong(f"ends at byte {self.size}, before the end of tensor '{name[:80]}'")
        return GgufTensor(name, shape, ggml_type, start + offset, nbytes)
