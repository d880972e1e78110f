"""Safetensors files of an artifact as numpy arrays over the mapped file. No torch, no copy.

The artifact's own loader has checked names, sizes and hashes; here a header that lies is still an error.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import ArtifactError

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8",
    "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_MAX_HEADER = 100 << 20


class Tensors(dict[str, NDArray[Any]]):
    """The tensors of a file by name, over the mapped file.

    Args:
        file: that is mapped.
    """

    def __init__(self, file: mmap.mmap) -> None:
        super().__init__()
        self._file = file

    def forget(self) -> None:
        """Let what was read leave this process's memory; it is read again when it is used again."""
        self._file.madvise(mmap.MADV_DONTNEED)


def map_tensors(path: Path) -> Tensors:
    """Every tensor of a file; bfloat16 as the uint16 of its bits.

    Raises:
        ArtifactError: the file is no safetensors file, or a tensor lies outside it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ArtifactError(f"'{path.name}' is no safetensors file: its header has {length} bytes.")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise ArtifactError(f"'{path.name}' is no safetensors file: its header is no JSON.") from None
        if not isinstance(header, dict):
            raise ArtifactError(f"'{path.name}' is no safetensors file: its header is no object.")
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors, data = Tensors(whole), memoryview(whole)[8 + length :]
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name] = _tensor(path, data, name, entry)
    return tensors


def _tensor(path: Path, data: memoryview, name: str, entry: Any) -> NDArray[Any]:
    try:
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        shape = tuple(int(it) for it in entry["shape"])
        begin, end = (int(it) for it in entry["data_offsets"])
        fits = 0 <= begin <= end <= len(data) and end - begin == math.prod(shape) * dtype.itemsize
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits or min(shape, default=0) < 0:
        raise ArtifactError(f"The tensor '{name}' of '{path.name}' is malformed or lies outside the file.")
    return np.frombuffer(data[begin:end], dtype).reshape(shape)
