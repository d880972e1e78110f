"""Tensors of a GGUF file, one at a time and, where the format is a plain grid, on their own grid.

    type   group  block bytes  value
    Q4_0   32     18           d * (q - 8)              d f16
    Q4_1   32     20           d * q + m                d, m f16
    Q8_0   32     34           d * q, q signed          d f16; kept as q + 128
    Q4_K   32     144 (x256)   (d*sc) * q - (dmin*mn)   d, dmin f16; sc, mn 6 bits; products in f32

Every other block format is dequantized to float32; F32, F16 and BF16 are read as they are.

Source: ggml-quants (block layouts); gguf-py `gguf.quants` gives the same values, and a test says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from optpipe.errors import ModelError
from optpipe.weights.gguf_file import GgufFile, GgufTensor, ggml_sizes
from optpipe.weights.grid import GridInfo, QuantizedTensor
from optpipe.weights.mapped import mapped_bytes, mapped_tensor
from optpipe.weights.store import BaseWeight, LazyWeight, check_rows

_Bytes = npt.NDArray[np.uint8]
_Grid = tuple[_Bytes, npt.NDArray[np.floating], npt.NDArray[np.floating] | None]

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_CHUNK = 1 << 22  # elements dequantized at a time: 16 MB of float32


def _nibbles(packed: _Bytes) -> _Bytes:
    """[…, n] bytes to […, 2n] codes: all low nibbles, then all high ones."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=-1)


def _halves(blocks: _Bytes, first: int, count: int) -> npt.NDArray[np.floating]:
    """``count`` f16 numbers of each block, from byte ``first`` on."""
    return np.ascontiguousarray(blocks[..., first : first + 2 * count]).view(np.float16)


def _q4_0(blocks: _Bytes) -> _Grid:
    return _nibbles(blocks[..., 2:]), _halves(blocks, 0, 1), None


def _q4_1(blocks: _Bytes) -> _Grid:
    return _nibbles(blocks[..., 4:]), _halves(blocks, 0, 1), _halves(blocks, 2, 1)


def _q8_0(blocks: _Bytes) -> _Grid:
    return blocks[..., 2:] ^ np.uint8(0x80), _halves(blocks, 0, 1), None  # two's complement to offset binary


def _q4_k(blocks: _Bytes) -> _Grid:
    """256 codes in 8 groups; bytes 0-3 d and dmin, 4-15 the 6-bit scales and minima, 16-143 the codes.

    Of the twelve bytes s: groups 0-3 have scale s[0:4] & 63 and minimum s[4:8] & 63; groups 4-7 have their
    low nibbles in s[8:12] (scale low, minimum high) and their top two bits on top of s[0:4] and s[4:8].
    """
    d = _halves(blocks, 0, 1).astype(np.float32)
    dmin = _halves(blocks, 2, 1).astype(np.float32)
    low, middle, high = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scale = np.concatenate([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], axis=-1)
    minimum = np.concatenate([middle & 0x3F, (high >> 4) | ((middle >> 2) & 0x30)], axis=-1)
    codes = _nibbles(blocks[..., 16:].reshape(*blocks.shape[:-1], 4, 32))
    return codes.reshape(*blocks.shape[:-1], 256), d * scale, -(dmin * minimum)


@dataclass(frozen=True, slots=True)
class _Format:
    info: GridInfo
    split: Callable[[_Bytes], _Grid]


_GRIDS = {
    "Q4_0": _Format(GridInfo(4, 32, has_minimum=False), _q4_0),
    "Q4_1": _Format(GridInfo(4, 32, has_minimum=True), _q4_1),
    "Q8_0": _Format(GridInfo(8, 32, has_minimum=False), _q8_0),
    "Q4_K": _Format(GridInfo(4, 32, has_minimum=True), _q4_k),
}


class GgufWeight(BaseWeight):
    """One tensor of a GGUF file, on its own grid or dequantized."""

    def __init__(self, path: Path, tensor: GgufTensor) -> None:
        sizes = ggml_sizes(tensor.ggml_type)
        assert sizes is not None, f"{tensor.ggml_type = } must be known: read_gguf checks it"
        self._path, self._tensor = path, tensor
        self._kind, self._per_block, self._block_bytes = sizes
        self._row_bytes = tensor.shape[-1] // self._per_block * self._block_bytes
        grid = _GRIDS[self._kind].info if self._kind in _GRIDS else None
        super().__init__(tensor.shape, _PLAIN.get(self._kind, torch.float32), tensor.nbytes, grid)

    def load(self) -> torch.Tensor:
        """The values: as stored when they are plain, else dequantized to float32."""
        if self._kind in _PLAIN:
            return self._plain()
        return self._values(self._rows()).reshape(self.shape)

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Only those rows, read and dequantized."""
        check_rows(self, index)
        if self._kind in _PLAIN:
            return self._plain()[index]
        data = self._rows().reshape(self.shape[0], -1, self._row_bytes)[index.cpu().numpy()]
        return self._values(data.reshape(-1, self._row_bytes)).reshape(index.shape + self.shape[1:])

    def blocks(self) -> QuantizedTensor:
        """The file's own codes and grid."""
        if self._kind not in _GRIDS:
            return super().blocks()
        return self._split(self._rows()).each(lambda part: part.reshape(*self.shape[:-1], -1))

    def _plain(self) -> torch.Tensor:
        tensor = mapped_tensor(self._path, self._tensor.offset, self._tensor.nbytes, self.dtype)
        return tensor.reshape(self.shape)

    def _rows(self) -> _Bytes:
        """The stored bytes, [rows, bytes a row]; leading dimensions count as rows."""
        data = mapped_bytes(self._path, self._tensor.offset, self._tensor.nbytes)
        return data.reshape(-1, self._row_bytes)

    def _split(self, rows: _Bytes) -> QuantizedTensor:
        """Rows of bytes to codes, scales and minima; each [rows, …]."""
        layout = _GRIDS[self._kind]
        codes, scale, minimum = layout.split(rows.reshape(rows.shape[0], -1, self._block_bytes))
        return QuantizedTensor(
            torch.from_numpy(codes.reshape(rows.shape[0], -1)),
            torch.from_numpy(scale.reshape(rows.shape[0], -1)),
            None if minimum is None else torch.from_numpy(minimum.reshape(rows.shape[0], -1)),
            layout.info.bits,
            layout.info.group,
        )

    def _values(self, rows: _Bytes) -> torch.Tensor:
        """[rows, bytes a row] to float32 [rows, K], some rows at a time."""
        out = torch.empty(rows.shape[0], self.shape[-1], dtype=torch.float32)
        step = max(1, _CHUNK // self.shape[-1])
        for first in range(0, rows.shape[0], step):
            chunk = rows[first : first + step]
            values = self._split(chunk).dequantize() if self._kind in _GRIDS else self._other(chunk)
            out[first : first + step] = values
        return out

    def _other(self, rows: _Bytes) -> torch.Tensor:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        try:
            values = dequantize(np.ascontiguousarray(rows), GGMLQuantizationType(self._tensor.ggml_type))
        except NotImplementedError:
            raise ModelError(
                f"Tensor '{self._tensor.name}' is stored as {self._kind}, which cannot be dequantized here.",
                hint="use a file in Q4_0, Q4_1, Q4_K, Q8_0, F16 or BF16",
            ) from None
        return torch.from_numpy(values)


def gguf_weights(file: GgufFile) -> dict[str, LazyWeight]:
    """All tensors of a file under their GGUF names."""
    return {name: GgufWeight(file.path, tensor) for name, tensor in file.tensors.items()}
