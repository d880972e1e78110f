"""Safetensors files, written tensor by tensor: one is in memory at a time, and of a large one a slab.

    u64 n | n bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}}, spaces to 8 bytes | data

Wide elements come first, so that every tensor is aligned to its element, as readers that map files like.

Source: the safetensors format description.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import ArtifactError
from ..weights.store import LazyWeight

SHARD_BYTES = 4_000_000_000
INDEX = "model.safetensors.index.json"
_SLAB_BYTES = 64 << 20
_METADATA = {"format": "pt"}  # transformers refuses a file without it
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.bool: "BOOL",
}


def write_sharded(folder: Path, weights: Mapping[str, LazyWeight], *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write ``model.safetensors``, or shards and their index when one file would pass ``shard_bytes``.

    Raises:
        ArtifactError: a dtype has no place in the format.
    """
    shards = _shards(weights, shard_bytes)
    if len(shards) == 1:
        write_tensors(folder / "model.safetensors", weights)
        return
    places = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(folder / file, {name: weights[name] for name in names})
        places.update(dict.fromkeys(names, file))
    total = sum(stored_bytes(weight) for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def write_tensors(path: Path, weights: Mapping[str, LazyWeight]) -> None:
    """Write one safetensors file, streaming.

    Raises:
        ArtifactError: a dtype has no place in the format.
    """
    order = sorted(weights, key=lambda name: -weights[name].dtype.itemsize)  # stable: else as given
    with path.open("wb") as file:
        file.write(_header(weights, order))
        for name in order:
            _write_values(file, name, weights[name])


def stored_bytes(weight: LazyWeight) -> int:
    """Bytes of the values in ``weight.dtype``, whatever form the source stores them in."""
    return math.prod(weight.shape) * weight.dtype.itemsize


def _shards(weights: Mapping[str, LazyWeight], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, weight in weights.items():
        if shards[-1] and size + stored_bytes(weight) > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += stored_bytes(weight)
    return shards


def _header(weights: Mapping[str, LazyWeight], order: Sequence[str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": _METADATA}
    at = 0
    for name in order:
        weight = weights[name]
        if weight.dtype not in _NAMES:
            raise ArtifactError(
                f"The weight '{name}' is {weight.dtype}, which safetensors files do not hold."
            )
        end = at + stored_bytes(weight)
        entries[name] = {
            "dtype": _NAMES[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_values(file: BinaryIO, name: str, weight: LazyWeight) -> None:
    written = 0
    for part in _slabs(weight):
        assert part.dtype == weight.dtype, f"{name}: {part.dtype = } {weight.dtype = }"
        written += file.write(part.contiguous().view(-1).view(torch.uint8).numpy().data)
    assert written == stored_bytes(weight), f"{name}: {written = } {stored_bytes(weight) = }"


def _slabs(weight: LazyWeight) -> Iterator[torch.Tensor]:
    if len(weight.shape) < 2 or stored_bytes(weight) <= _SLAB_BYTES:
        yield weight.load()
        return
    rows = weight.shape[0]
    step = max(1, _SLAB_BYTES * rows // stored_bytes(weight))
    for begin in range(0, rows, step):
        yield weight.rows(torch.arange(begin, min(begin + step, rows)))
