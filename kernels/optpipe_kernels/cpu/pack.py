"""Weights of linear layers in the form that the native kernels read, the same at every instruction set.

The form is drawn in ``native/src/ops/packed.h``. One weight is one blob of bytes, aligned to 64, that says
its own shape; several matrices over the same inputs (q, k and v) are packed one below the other, and gate and
up tile by tile for the gated kernels.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import KernelError

from .library import Bf16, Operand, Pool, library

LAYOUT = 2
"""Changes when the form does; part of the key under which packed weights are cached."""

TILE = 16
BLOCK = 32
_MAGIC = 0x31504F43
_HEAD = struct.Struct("<4i5q8x")

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Matrix:
    """One matrix [N, K] as an artifact stores it.

    Attributes:
        weight: codes as int32 words [N, K·bits/32]; or values, float32 or the bits of bfloat16 as uint16.
        scale: [N, groups] float16 or float32; None for values.
        minimum: [N, groups], or None.
    """

    weight: NDArray[Any]
    scale: NDArray[Any] | None = None
    minimum: NDArray[Any] | None = None


@dataclass(frozen=True)
class Form:
    """What a blob holds.

    Attributes:
        rows: N, outputs of all matrices together; of one of the two for a gated weight.
        inputs: K.
        bits: 4 or 8 for codes, 16 for bfloat16, 32 for float32.
        group: inputs a scale, a multiple of 32; −1 for one scale a row; 0 for values.
        minimum: whether there are minima.
        wide: whether scales are float32, because float16 does not hold them exactly.
        gated: whether there are two matrices, whose tiles alternate.

    Raises:
        KernelError: no kernel takes that form.
    """

    rows: int
    inputs: int
    bits: int
    group: int
    minimum: bool = False
    wide: bool = False
    gated: bool = False

    def __post_init__(self) -> None:
        """Refuse what no kernel takes."""
        fits = self.group == 0 if self.bits in (16, 32) else self.group == -1 or self._divides()
        if self.bits not in (4, 8, 16, 32) or not fits or min(self.rows, self.inputs) < 1:
            raise KernelError(
                f"the CPU kernels take no weight [{self.rows}, {self.inputs}] of {self.bits} bits in groups"
                f" of {self.group}; groups are multiples of {BLOCK} that divide K, or -1"
            )

    def _divides(self) -> bool:
        return self.group > 0 and self.group % BLOCK == 0 and self.inputs % self.group == 0

    @property
    def stored_rows(self) -> int:
        """Rows that the blob has places for."""
        return 2 * _up(self.rows, TILE) if self.gated else self.rows

    @property
    def stored_group(self) -> int:
        """Inputs a scale, with the padding where that is a whole row."""
        return _up(self.inputs, BLOCK) if self.group == -1 else self.group

    @property
    def tile_bytes(self) -> int:
        """Bytes of 16 outputs."""
        if self.group == 0:
            return _up(TILE * (_up(self.inputs, 2) * 2 if self.bits == 16 else self.inputs * 4), 64)
        groups = -(-self.inputs // self.stored_group)
        scales = groups * TILE * (4 if self.wide else 2) * (1 + self.minimum)
        return _up(_up(self.inputs, BLOCK) * TILE * self.bits // 8 + scales, 64)

    @property
    def bytes(self) -> int:
        """Bytes of the blob."""
        return 64 + -(-self.stored_rows // TILE) * self.tile_bytes

    def head(self) -> Bytes:
        """The first 64 bytes: ``Head`` of packed.h."""
        fields = (
            _MAGIC,
            self.bits,
            self.minimum,
            self.wide,
            self.stored_rows,
            self.inputs,
            0 if self.group == 0 else self.stored_group,
            self.tile_bytes,
            self.bytes,
        )
        return np.frombuffer(_HEAD.pack(*fields), np.uint8)


def form_of(parts: Sequence[Matrix], inputs: int, bits: int, group: int, *, gated: bool = False) -> Form:
    """The form that holds the parts; scales are float32 when one of them is.

    Raises:
        KernelError: no kernel takes it, or two gated parts differ in their rows.
    """
    rows = [part.weight.shape[0] for part in parts]
    if gated and (len(rows) != 2 or rows[0] != rows[1]):
        raise KernelError(f"a gated weight has two matrices of as many rows, got {rows}")
    scales = [it for part in parts for it in (part.scale, part.minimum) if it is not None]
    wide = any(it.dtype != np.float16 for it in scales)
    minimum = any(part.minimum is not None for part in parts)
    return Form(rows[0] if gated else sum(rows), inputs, bits, group, minimum, wide, gated)


def pack(
    parts: Sequence[Matrix],
    inputs: int,
    bits: int,
    group: int,
    *,
    gated: bool = False,
    out: Bytes | None = None,
    pool: Pool | None = None,
) -> Bytes:
    """A blob [bytes] of the parts.

    Args:
        parts: matrices over the same inputs; gate and up when ``gated``.
        inputs: K.
        bits: as in ``Form``.
        group: as in ``Form``.
        gated: whether the tiles of two parts alternate.
        out: where to put it: zeros, aligned to 64, ``form_of(…).bytes`` long.
        pool: threads that share the work.

    Raises:
        KernelError: the parts do not agree with each other or with the attributes.
    """
    form = form_of(parts, inputs, bits, group, gated=gated)
    blob = aligned_zeros(form.bytes) if out is None else out
    blob[:64] = form.head()
    first = 0
    for part in parts:
        operands = [_values(part.weight), _scales(part.scale, form), _scales(part.minimum, form), blob]
        library().call("pack", operands, (first, 2 if gated else 1), pool=pool)
        first += TILE if gated else part.weight.shape[0]
    return blob


def aligned_zeros(count: int) -> Bytes:
    """``count`` zero bytes, aligned to 64."""
    room = np.zeros(count + 63, np.uint8)
    begin = -room.ctypes.data % 64
    return room[begin : begin + count]


def quantized_bytes(inputs: int) -> int:
    """Bytes of one row of K quantized activations: quantize.h draws them."""
    return _up(-(-inputs // BLOCK) * 44, 64)


def _values(weight: NDArray[Any]) -> Operand:
    whole = np.ascontiguousarray(weight)
    return Bf16(whole) if whole.dtype == np.uint16 else whole


def _scales(scale: NDArray[Any] | None, form: Form) -> NDArray[Any] | None:
    return None if scale is None else np.ascontiguousarray(scale, np.float32 if form.wide else np.float16)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step
