"""Peak memory by the kernel's account. ``ru_maxrss`` will not do: a child inherits its parent's."""

from __future__ import annotations

from pathlib import Path


def peak_rss_mb(pid: int | str = "self", *, children: bool = False) -> float | None:
    """The most memory a process held, in MB; None when the kernel does not say.

    Args:
        children: add those of the processes that it has started and that still run; pages that they share are
            counted in each.
    """
    process = Path("/proc") / str(pid)
    try:
        status = (process / "status").read_text()
        started = _children(process) if children else []
    except OSError:
        return None
    peak = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    if peak is None:
        return None
    rest = [peak_rss_mb(child, children=True) for child in started]
    return int(peak.split()[1]) * 1024 / 1e6 + sum(it for it in rest if it is not None)


def _children(process: Path) -> list[str]:
    return [pid for task in (process / "task").iterdir() for pid in (task / "children").read_text().split()]
