"""The paged cache on the device: [P, block, H_kv, D] for every layer, in one of four dtypes.

f16, bf16   as computed
f8, i8      float8 e4m3 and int8, with a scale a token and head [P, block, H_kv] float32
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from optpipe.dialect.row_wise_linear import rounded_rows
from optpipe.errors import CapacityError
from optpipe.targets.protocol import CacheSpec

DTYPES: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f8": torch.float8_e4m3fn,
    "i8": torch.int8,
}
SCALED = ("f8", "i8")
_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Stored:
    """Keys or values of one layer.

    Attributes:
        data: [P, block, H_kv, D].
        scale: [P, block, H_kv] float32, what 8-bit numbers are multiplied by; None for wider ones.
    """

    data: torch.Tensor
    scale: torch.Tensor | None = None


Write = Callable[..., None]
"""The body of ``kv_write``."""


def write(body: Write, k: torch.Tensor, v: torch.Tensor, keys: Stored, values: Stored, slots: Any) -> None:
    """Keys and values [T, H_kv, D] into their slots, rounded as kernels round them: what those must equal."""
    if keys.scale is None or values.scale is None:
        body(k, v, keys.data, values.data, slots)
        return
    kind = keys.data.dtype
    (k, k_scale), (v, v_scale) = (rounded_rows(it.float(), kind) for it in (k, v))
    codes = (it.to(kind).view(torch.int8) for it in (k, v))
    body(*codes, keys.data.view(torch.int8), values.data.view(torch.int8), slots)
    body(k_scale, v_scale, keys.scale.unsqueeze(-1), values.scale.unsqueeze(-1), slots)


def widened(stored: Stored, dtype: torch.dtype) -> torch.Tensor:
    """What a cache of 8 bits holds, [P, block, H_kv, D] in ``dtype``; a wider one as it is."""
    if stored.scale is None:
        return stored.data
    return (stored.data.float() * stored.scale.unsqueeze(-1)).to(dtype)


def kv_dtypes(dtype: torch.dtype) -> tuple[str, ...]:
    """How the cache can store numbers for a compute dtype; the first is the default."""
    return (next(name for name, it in DTYPES.items() if it is dtype), "f8", "i8")


def block_bytes(spec: CacheSpec, kv_dtype: str) -> int:
    """Bytes of one block over all layers."""
    total = spec.block_bytes(DTYPES[kv_dtype].itemsize)
    if kv_dtype in SCALED:
        total += spec.block_size * _SCALE_BYTES * sum(2 * heads for heads, _, _ in spec.layers)
    return total


def allocate(spec: CacheSpec, blocks: int, kv_dtype: str, device: torch.device) -> dict[str, Stored]:
    """A cache of zeros, by the names of a Program's cache inputs.

    Raises:
        CapacityError: it does not fit on the device.
    """
    try:
        return dict(_layers(spec, blocks, kv_dtype, device))
    except RuntimeError as error:  # torch.OutOfMemoryError is one; so is what the CPU's allocator raises
        raise CapacityError(f"A cache of {blocks} blocks does not fit on {device}.") from error


def _layers(
    spec: CacheSpec, blocks: int, kv_dtype: str, device: torch.device
) -> Iterator[tuple[str, Stored]]:
    for layer, (heads, keys, values) in enumerate(spec.layers):
        for kind, width in (("k_cache", keys), ("v_cache", values)):
            shape = (blocks, spec.block_size, heads)
            data = torch.zeros((*shape, width), dtype=DTYPES[kv_dtype], device=device)
            scale = torch.zeros(shape, dtype=torch.float32, device=device) if kv_dtype in SCALED else None
            yield f"{kind}.{layer}", Stored(data, scale)
