"""How many threads are worth having: physical cores that this process may use, within its group's quota.

Two threads of one core share its multipliers, so the second one adds little to products; and a container that
may use two processors' time of sixty-four is slowed, not served, by sixty-four threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT, allowed: Iterable[int] | None = None) -> int:
    """Threads that a pool has by default, at least 1.

    Args:
        root: where ``sys`` and ``proc`` are.
        allowed: processors that this process may run on; asked of the system when None.
    """
    processors = os.sched_getaffinity(0) if allowed is None else allowed
    cores = {_core(root, processor) for processor in processors}
    quota = min(_quotas(root), default=math.inf)
    return max(1, min(len(cores), math.ceil(quota) if quota < math.inf else len(cores)))


def _core(root: Path, processor: int) -> str:
    """What the threads of one core have in common: the list of them."""
    topology = root / f"sys/devices/system/cpu/cpu{processor}/topology"
    return _read(topology / "thread_siblings_list") or str(processor)


def _quotas(root: Path) -> Iterable[float]:
    """Processors that each control group of this process may keep busy, where it has a limit."""
    base = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from filter(None, (_version_2(folder) for folder in _upwards(base, path)))
        elif "cpu" in controllers.split(","):
            mounted = next((it for it in (base / controllers, base / "cpu") if it.is_dir()), base)
            yield from filter(None, (_version_1(folder) for folder in _upwards(mounted, path)))


def _upwards(base: Path, path: str) -> Iterable[Path]:
    """The folder of a control group and those above it. A container sees no path, but the base."""
    folder = base / path.strip("/")
    while folder != base and base in folder.parents:
        yield folder
        folder = folder.parent
    yield base


def _version_2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _version_1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None  # −1: no limit


def _read(path: Path) -> str:
    """A small file's words; nothing when it is not there."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
