"""Packing, against the library whose layout it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optpipe.quantize.pack import pack, packed_columns, unpack


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(1, 32), (5, 576), (3, 7), (2, 4, 40)])
def test_words_equal_those_of_compressed_tensors(bits: int, shape: tuple[int, ...]) -> None:
    library = pytest.importorskip("compressed_tensors.compressors")
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    signed = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(pack(codes, bits), library.pack_to_int32(signed, bits))


@given(
    bits=st.sampled_from([4, 8]),
    rows=st.integers(0, 3),
    columns=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_unpack_gives_back_what_was_packed(bits: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=generator)
    words = pack(codes, bits)
    assert words.shape == (rows, packed_columns(columns, bits))
    assert torch.equal(unpack(words, bits, columns), codes)


def test_packs_the_transpose_of_a_stored_tensor() -> None:
    codes = torch.arange(16, dtype=torch.uint8).view(8, 2).T
    assert torch.equal(unpack(pack(codes, 4), 4, 8), codes)


def test_one_row_packs_whatever_its_stride():
    codes = torch.arange(66, dtype=torch.uint8)[None, 1:65] & 15  # [1, 64]
    odd = codes.as_strided((1, 64), (65, 1))
    assert odd.is_contiguous() and torch.equal(pack(odd, 4), pack(codes.clone(), 4))
    assert torch.equal(pack(odd, 8), pack(codes.clone(), 8))
