"""The GPU and its two ceilings, measured before anything else."""

from __future__ import annotations

import re
from typing import Any

import torch

from .cases import Place, timed


def place(*, dry: bool) -> Place:
    """The GPU with its ceilings; in a dry run the CPU with made-up ones, which are never reported."""
    if dry:
        return Place(torch.device("cpu"), 1e12, 1e15, True)
    device = torch.device("cuda")
    bare = Place(device, 1.0, 1.0, False)
    source = torch.randn(1 << 29, device=device, dtype=torch.bfloat16)
    out = torch.empty_like(source)
    seconds = timed([lambda: out.copy_(source)], bare)
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = timed([lambda: torch.mm(a, b)], bare)
    assert isinstance(seconds, float) and isinstance(product, float), f"{seconds = }, {product = }"
    return Place(device, 2 * source.nbytes / seconds, 2 * 8192**3 / product, False)


def facts(where: Place) -> dict[str, Any]:
    """What the report's head says."""
    import triton

    versions = {"torch": torch.__version__, "triton": triton.__version__}
    if where.dry:
        return {"gpu": "none: a dry run", **versions}
    properties = torch.cuda.get_device_properties(where.device)
    return {
        "gpu": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "copy": f"{where.bandwidth / 1e12:.2f} TB/s, read and written",
        "bf16 product 8192³": f"{where.rate / 1e12:.0f} TFLOP/s",
        **versions,
    }


def slug(name: str) -> str:
    """A GPU's name as a file's, as the tile tables have it."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
