"""Tensors of safetensors files: the header is checked against the file, the data mapped when asked for.

    u64 n | n bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}} | data

Source: the safetensors format description.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from optpipe.errors import ModelError
from optpipe.weights.mapped import mapped_tensor
from optpipe.weights.store import BaseWeight, LazyWeight, check_rows

_MAX_HEADER = 100_000_000  # bytes; the format's own limit
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_EIGHT_BIT_FLOATS = {"F8_E4M3": torch.float8_e4m3fn}


class SafetensorsWeight(BaseWeight):
    """One tensor of a safetensors file."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._path, self._offset = path, offset
        super().__init__(shape, dtype, math.prod(shape) * dtype.itemsize)

    def load(self) -> torch.Tensor:
        """The tensor over mapped pages, which are read when touched."""
        return mapped_tensor(self._path, self._offset, self.nbytes, self.dtype).reshape(self.shape)

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Only the pages of those rows are read."""
        check_rows(self, index)
        return self.load()[index]


def safetensors_weights(path: Path, *, eight_bit_floats: bool = False) -> dict[str, LazyWeight]:
    """All tensors of one file; nothing but the header is read.

    Args:
        eight_bit_floats: take F8_E4M3 too: the codes of a graph that reads them with their scales. A model's
            own would be taken for its values.

    Raises:
        ModelError: the file is cut short, damaged, or of a dtype that is not read.
    """
    size = path.stat().st_size
    header, start = _header(path, size)
    dtypes = _DTYPES | _EIGHT_BIT_FLOATS if eight_bit_floats else _DTYPES
    weights: dict[str, LazyWeight] = {}
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end, shape, dtype = _entry(path, name, entry, size - start, dtypes)
        spans.append((begin, end))
        weights[name] = SafetensorsWeight(path, start + begin, shape, dtype)
    _check_spans(path, spans, size - start)
    return weights


def _wrong(path: Path, what: str) -> ModelError:
    return ModelError(f"The safetensors file '{path.name}' {what}.", hint="it may be damaged: fetch it again")


def _header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The parsed header and where the data begins."""
    if size < 10:
        raise _wrong(path, f"is {size} bytes long, too short to be one")
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _MAX_HEADER:
            raise _wrong(path, f"says its header is {length} bytes long, and {_MAX_HEADER} are allowed")
        if length > size - 8:
            raise _wrong(path, f"is cut short: it is {size} bytes long, and its header alone {length}")
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
    except _DuplicateNameError as error:
        raise _wrong(path, f"has the tensor '{str(error)[:120]}' twice") from None
    except (ValueError, RecursionError):
        raise _wrong(path, "has a header that is not valid JSON") from None
    if not isinstance(header, dict):
        raise _wrong(path, "has a header that is not an object")
    return header, 8 + length


class _DuplicateNameError(Exception):
    """A name stands twice in one JSON object."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateNameError(next(name for name in names if names.count(name) > 1))
    return content


def _entry(
    path: Path, name: str, entry: Any, room: int, dtypes: Mapping[str, torch.dtype]
) -> tuple[int, int, tuple[int, ...], torch.dtype]:
    """One tensor's place, checked: (begin, end, shape, dtype)."""
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise _wrong(path, f"does not say dtype, shape and place of the tensor '{name[:120]}'") from None
    if not isinstance(shape, list) or not all(_whole(number) for number in [*shape, begin, end]):
        raise _wrong(path, f"gives the tensor '{name[:120]}' a shape or place that is not whole numbers")
    if not isinstance(kind, str) or kind not in dtypes:
        raise ModelError(
            f"The tensor '{name[:120]}' in '{path.name}' is stored as {str(kind)[:40]}, which is not read.",
            hint=f"read are {', '.join(dtypes)}",
        )
    dtype = dtypes[kind]
    nbytes = math.prod(shape) * dtype.itemsize
    if end - begin != nbytes:
        raise _wrong(path, f"gives {end - begin} bytes to the tensor '{name[:120]}', which takes {nbytes}")
    if end > room:
        raise _wrong(path, f"is cut short: the tensor '{name[:120]}' ends {end - room} bytes after the file")
    return begin, end, tuple(shape), dtype


def _whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 63


def _check_spans(path: Path, spans: list[tuple[int, int]], room: int) -> None:
    """Tensors follow one another and fill the file: no overlap, no hole, nothing behind them."""
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise _wrong(path, f"has tensors that {'overlap' if begin < at else 'leave a hole'} at byte {at}")
        at = end
    if at != room:
        raise _wrong(path, f"has {room - at} bytes after its last tensor")
