"""What the machine has left. Inside a container its own figure means nothing: the control group's counts."""

from __future__ import annotations

from pathlib import Path

from .errors import CapacityError

_UNLIMITED = 1 << 60  # bytes; version 1 of control groups writes a limit near 2**63 for none


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: of the machine, and of every control group that it is in.

    Args:
        root: where ``proc`` and ``sys`` are found.

    Raises:
        CapacityError: the kernel does not say.
    """
    left = group_memory(root)
    return _machine(root) if left is None else min(left, _machine(root))


def group_memory(root: Path = Path("/")) -> int | None:
    """Bytes that the narrowest control group around this process leaves; None when none has a limit."""
    left = [it for it in (_left(group) for group in _groups(root)) if it is not None]
    return max(0, min(left)) if left else None


def _machine(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise CapacityError("The kernel does not say how much memory is available.", hint="this needs Linux")


def _groups(root: Path) -> list[Path]:
    """Folders of the memory controllers of this process's groups, innermost first, of both versions."""
    found: list[Path] = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            mount = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
        else:
            continue
        inner = mount / path.lstrip("/")
        # Inside a container the path may be the host's: then the mount itself is this process's group.
        found += [it for it in (inner, *inner.parents) if it == mount or mount in it.parents]
    return found


def _left(group: Path) -> int | None:
    """Bytes that a control group leaves, its file cache counted as free; None without a limit."""
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            limit = (group / limit_name).read_text().strip()
            used = int((group / used_name).read_text())
        except (OSError, ValueError):
            continue
        if limit == "max" or int(limit) >= _UNLIMITED:
            return None
        return int(limit) - used + _file_cache(group)
    return None


def _file_cache(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(maxsplit=1) for line in lines)
    return int(values.get("total_inactive_file", values.get("inactive_file", "0")))
