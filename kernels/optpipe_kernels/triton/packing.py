"""Quantized weights as the kernels read them, made from how artifacts store them.

    codes  int32 [slabs, N, 16]     16 words of a row make a slab: 128 inputs of 4 bits, 64 of 8
    word c of a slab, piece i, half h holds input 32·i + 2·c + h of its slab:

      4 bits   | 3 h1 | 2 h1 | 1 h1 | 0 h1 | 3 h0 | 2 h0 | 1 h0 | 0 h0 |
                31  28                       15  12                 3  0      piece = bits 4i of each half
      8 bits   |  1 h1  |  0 h1  |  1 h0  |  0 h0  |                          piece = bits 8i of each half

A shift and a mask of a word give two neighbouring inputs in its halves, where ``quant_codes`` turns both into
16-bit floats at once; the words of 8 rows make 512 bytes in a row, 16 to a thread. A piece of 32 inputs lies
in one group. Codes are unsigned; kernels subtract 2^(bits−1), so that the middle of a grid is

    W = (u − 2^(bits−1)) · scale + middle       middle = minimum + 2^(bits−1) · scale, absent if symmetric

    grid   int32 [G, N]    with a minimum: scale in the low half, middle in the high one
           int32 [G/2, N]  symmetric: scales of two groups, the even one in the low half
           int32 [G, N]    symmetric in groups of 128: the scale in both halves, since which half a
                           block needs would be known at run time only
           all 16-bit floats of the activations' type; G = K/g, as many as the slabs' inputs have
    scale  float32 [N]     symmetric with one group a row: multiplies the finished sums
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from optpipe.dialect.quant_linear import unpack
from optpipe.errors import KernelError

BLOCK_K = 128  # inputs a step of the kernels: what is stored is padded to it
PIECE = 32  # inputs that one shift gives, the narrowest group
WORDS = 16  # of a row in a slab
DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, eq=False)
class QuantWeight:
    """A quantized matrix [N, K] in the module's layout.

    Attributes:
        codes: int32 [slabs, N, 16].
        grid: int32, or None where ``scale`` is all there is.
        scale: float32 [N], or None.
        rows: N.
        columns: K, before padding.
        bits: 4 or 8.
        group: 32, 64 or 128; 0 for one group a row.
        has_minimum: whether the grid has a middle of its own.
        dtype: of the activations it meets.
    """

    codes: torch.Tensor
    grid: torch.Tensor | None
    scale: torch.Tensor | None
    rows: int
    columns: int
    bits: int
    group: int
    has_minimum: bool
    dtype: torch.dtype

    @property
    def blocks(self) -> int:
        """Steps of BLOCK_K inputs."""
        return -(-self.columns // BLOCK_K)

    @property
    def nbytes(self) -> int:
        """Bytes that one use of the weight reads."""
        return sum(part.nbytes for part in (self.codes, self.grid, self.scale) if part is not None)


def repack(
    packed: torch.Tensor,
    scale: torch.Tensor,
    minimum: torch.Tensor | None = None,
    *,
    bits: int,
    group: int,
    dtype: torch.dtype,
) -> QuantWeight:
    """A stored matrix in the kernels' layout, on the device where it lies.

    Args:
        packed: [N, K·bits/32] int32, as ``quant_linear`` of the dialect takes it.
        scale, minimum: [N, K/g].
        bits: 4 or 8.
        group: 32, 64, 128, or −1 for one group a row.
        dtype: of the activations, float16 or bfloat16.

    Raises:
        KernelError: the kernels do not know the grid, or ``dtype`` cannot hold its scales.
    """
    if dtype not in DTYPES:
        raise KernelError(f"quantized linear layers take activations of float16 or bfloat16, got {dtype}")
    rows, columns = packed.shape[0], packed.shape[1] * 32 // bits
    if scale.shape[1] == 1:
        group = 0
    elif group not in (32, 64, 128):
        raise KernelError(f"quantized linear layers take groups of 32, 64 or 128 or a row, got {group}")
    if group and columns != scale.shape[1] * group:
        raise KernelError(f"{scale.shape[1]} groups of {group} do not make {columns} inputs")
    exact = minimum is None and group == 0
    grid = None if exact else _grid(scale.float(), minimum, bits, group, -(-columns // BLOCK_K), dtype)
    return QuantWeight(
        _codes(unpack(packed, bits), bits), grid, scale[:, 0].float().contiguous() if exact else None,
        rows, columns, bits, group, minimum is not None, dtype,
    )  # fmt: skip


def _codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """[slabs, N, 16] int32 of codes [N, K] uint8; inputs past K get the code 0."""
    rows, columns = codes.shape
    missing = -columns % BLOCK_K
    if missing:
        codes = torch.nn.functional.pad(codes, (0, missing))
    pieces = 16 // bits
    parts = codes.view(rows, -1, pieces, WORDS, 2)  # [N, slabs, i, c, h]
    halves = parts[:, :, 0].to(torch.int32)
    for piece in range(1, pieces):
        halves = halves | (parts[:, :, piece].to(torch.int32) << (bits * piece))
    words = halves[..., 0] | (halves[..., 1] << 16)
    return words.transpose(0, 1).contiguous()


def _grid(
    scale: torch.Tensor,
    minimum: torch.Tensor | None,
    bits: int,
    group: int,
    blocks: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Pairs of 16-bit floats, one pair an int32, of scale and minimum [N, G] float32."""
    groups = blocks * BLOCK_K // group if group else 1
    if minimum is None:
        scale = _padded(scale, groups)
        first, second = (scale, scale) if group == 128 else scale.unflatten(1, (-1, 2)).unbind(-1)
    else:
        middle = minimum.float() + scale * (1 << (bits - 1))
        first, second = _padded(scale, groups), _padded(middle, groups)
    pairs = torch.stack((first, second), dim=-1).to(dtype)
    if dtype is torch.float16 and not pairs.is_meta and not bool(pairs.isfinite().all()):
        raise KernelError("float16 cannot hold the scales of a quantized weight", hint="compute in bfloat16")
    return pairs.view(torch.int32).squeeze(-1).T.contiguous()


def _padded(part: torch.Tensor, groups: int) -> torch.Tensor:
    """[N, groups]: zeros to the right."""
    return torch.nn.functional.pad(part, (0, groups - part.shape[1]))
