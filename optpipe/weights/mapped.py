"""Read-only windows into files: a tensor's bytes, paged in when touched and let go with the tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch


def mapped_bytes(path: Path, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """Map ``nbytes`` bytes of a file from ``offset`` on.

    One mapping a call, so that memory is given back with the last view of it. Writes would go to private
    copies of the pages, never to the file. The caller has checked the range against the file's size.
    """
    assert nbytes > 0, f"{nbytes = }: nothing cannot be mapped"
    return np.memmap(path, dtype=np.uint8, mode="c", offset=offset, shape=(nbytes,))


def mapped_tensor(path: Path, offset: int, nbytes: int, dtype: torch.dtype) -> torch.Tensor:
    """A flat tensor over a range of a file."""
    if nbytes == 0:
        return torch.empty(0, dtype=dtype)
    data = torch.from_numpy(mapped_bytes(path, offset, nbytes))
    if offset % dtype.itemsize:
        data = data.clone()  # torch expects aligned elements
    return data.view(dtype)
