"""The checked-in table of tile sizes: nothing is tuned while a model runs.

``tables/KEY/KERNEL.json`` holds rows, the special ones first; a row is taken when every condition of its
``when`` holds, a number by equality, a pair by lo ≤ x ≤ hi (null: no bound):

    [{"when": {"head_dim": [129, null]}, "constants": {"BLOCK_N": 32}, "num_warps": 4, "num_stages": 2},
     {"when": {}, "constants": {"BLOCK_N": 64}, "num_warps": 4, "num_stages": 3}]

KEY is a compute capability (``sm_90``), or a GPU of it by name (``sm_90/nvidia_h100_80gb_hbm3``): rows tuned
on the very GPU are asked before what its capability ships. Chips with little shared memory (99 KB a block)
have the A100's rows, and rows of their own for the kernels whose tiles would not fit.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from optpipe.errors import KernelError

TABLES: Final = Path(__file__).parent / "tables"
CAPABILITIES: Final = (80, 90, 100)
BORROWED: Final[Mapping[str, str]] = {"sm_120": "sm_89", "sm_89": "sm_86", "sm_86": "sm_80"}
SMALLER: Final = (86, 89, 120)  # which look where ``BORROWED`` says for tables that they do not have
STAND_IN: Final = "sm_90"  # whose tiles the interpreter and meta tensors use


@dataclass(frozen=True)
class Tile:
    """How one kernel is launched: its constexpr sizes, warps a program, depth of the pipeline."""

    constants: Mapping[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3


def tile(kernel: str, key: str, **bucket: int) -> Tile:
    """The table's row for a kernel.

    Args:
        kernel: its name in the table.
        key: what ``device_key`` returns.
        bucket: sizes that the rows ask for; static ones where results must not depend on the batch.

    Raises:
        KernelError: no row fits.
    """
    for row in _rows(kernel, key):
        if all(_holds(condition, bucket, size, kernel) for size, condition in row["when"].items()):
            return Tile(row["constants"], row["num_warps"], row["num_stages"])
    sizes = ", ".join(f"{name}={size}" for name, size in bucket.items())
    raise KernelError(f"the tile table of '{key}' has no row for {kernel} with {sizes or 'no sizes'}")


def device_key(device: torch.device) -> str:
    """The table's key of a device; the CPU and ``meta`` borrow the H100's tiles."""
    return _cuda_key(device.index or 0) if device.type == "cuda" else STAND_IN


@functools.cache
def _cuda_key(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    capability = _capability_key(properties.major, properties.minor)
    named = f"{capability}/{re.sub(r'[^a-z0-9]+', '_', properties.name.lower()).strip('_')}"
    return named if (TABLES / named).is_dir() else capability


def _capability_key(major: int, minor: int) -> str:
    """The newest capability of the table that is not newer than the device's."""
    known = sorted((*CAPABILITIES, *SMALLER))
    fitting = [capability for capability in known if capability <= 10 * major + minor]
    if not fitting:
        raise KernelError(
            f"the Triton kernels need a GPU of compute capability 8.0 or newer, got {major}.{minor}"
        )
    return f"sm_{fitting[-1]}"


@functools.cache
def _rows(kernel: str, key: str) -> tuple[dict[str, Any], ...]:
    """A kernel's rows, those of a named GPU before its capability's."""
    capability = key.partition("/")[0]
    tuned = TABLES / key / f"{kernel}.json"
    found: list[dict[str, Any]] = []
    if key != capability and tuned.exists():
        found += json.loads(tuned.read_text())
    return (*found, *json.loads(path_of(kernel, capability).read_text()))


def path_of(kernel: str, capability: str) -> Path:
    """The file of a kernel's rows for ``sm_N``, its own or one that it borrows.

    Raises:
        KernelError: there is none.
    """
    name: str | None = capability
    while name is not None:
        path = TABLES / name / f"{kernel}.json"
        if path.exists():
            return path
        name = BORROWED.get(name)
    raise KernelError(f"there is no tile table of {kernel} for '{capability}'")


def _holds(condition: Any, bucket: Mapping[str, int], size: str, kernel: str) -> bool:
    if size not in bucket:
        raise KernelError(f"the tile table asks for '{size}' of {kernel}, which the op does not give")
    value = bucket[size]
    if isinstance(condition, list):
        low, high = condition
        return (low is None or low <= value) and (high is None or value <= high)
    return bool(value == condition)
