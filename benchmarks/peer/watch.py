"""Whether the machine was quiet."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path


class Watch:
    """What other processes take of the machine while this one and its children measure."""

    def __init__(self) -> None:
        self._begun = (time.monotonic(), _busy(), _own())

    def others(self) -> float:
        """Their processor time so far, as a share of all processors; to be asked when the children ended."""
        begun, busy, own = self._begun
        spent = (_busy() - busy) - (_own() - own)
        return max(0.0, spent / (time.monotonic() - begun) / (os.cpu_count() or 1))


def _busy() -> float:
    """Processor seconds of the whole machine that were not idle; time stolen by a hypervisor among them."""
    user, nice, system, _, _, irq, soft, steal = Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    return sum(map(int, (user, nice, system, irq, soft, steal))) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(it.ru_utime + it.ru_stime for it in spent)
