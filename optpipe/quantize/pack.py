"""Codes in int32 words, as compressed-tensors' ``pack-quantized`` lays them out.

    word j of a row holds codes j·P … j·P + P − 1 with P = 32 / bits, little end first:

      bits 4    | code 7 | code 6 | … | code 1 | code 0 |
                 31    28                7    4 3      0

Codes are unsigned. That library counts from −2^(bits−1) and adds the offset while packing, so the words are
the same. A row whose length is no multiple of P ends in a word padded with zeros.
"""

from __future__ import annotations

import sys

import torch

assert sys.byteorder == "little", f"{sys.byteorder = }: words are packed by viewing bytes"

BITS = (4, 8)


def packed_columns(columns: int, bits: int) -> int:
    """Words a row of ``columns`` codes takes.

    >>> packed_columns(576, 4), packed_columns(9, 4), packed_columns(9, 8)
    (72, 2, 3)
    """
    return -(-columns * bits // 32)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [..., K] uint8 as words [..., ceil(K·bits/32)] int32.

    >>> [hex(word) for word in pack(torch.arange(8, dtype=torch.uint8)[None], 4)[0].tolist()]
    ['0x76543210']
    """
    assert bits in BITS, f"{bits = } must be one of {BITS}"
    assert codes.dtype == torch.uint8, f"{codes.dtype = } must be torch.uint8"
    missing = packed_columns(codes.shape[-1], bits) * (32 // bits) - codes.shape[-1]
    if missing:
        codes = torch.nn.functional.pad(codes, (0, missing))
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    # Flat first: the stride of a dimension of size 1 may be anything, and a view looks at it.
    return codes.flatten().view(torch.int32).view(*codes.shape[:-1], codes.shape[-1] // 4)


def unpack(words: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """The inverse of ``pack``: codes [..., columns] uint8.

    >>> unpack(pack(torch.tensor([[3, 15, 9]], dtype=torch.uint8), 4), 4, columns=3).tolist()
    [[3, 15, 9]]
    """
    assert bits in BITS, f"{bits = } must be one of {BITS}"
    assert words.dtype == torch.int32, f"{words.dtype = } must be torch.int32"
    assert words.shape[-1] == packed_columns(columns, bits), f"{words.shape[-1] = } {columns = } {bits = }"
    codes = words.contiguous().view(torch.uint8)
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
    return codes[..., :columns]
