"""The results file: one a kind of processor, added to by every run."""

from __future__ import annotations

import json
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .forms import THREADS

FOLDER = Path(__file__).resolve().parents[1] / "results"


class Results:
    """What was measured on this kind of processor.

    The file has ``machine``, ``runs`` (model → peer → variant → record), ``bounds`` and ``servers``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = {"machine": {}, "runs": {}, "servers": {}}
        if path.is_file():
            self.data = json.loads(path.read_text())

    def record(self, model: str, peer: str, variant: str, found: dict[str, Any]) -> None:
        """Keep a record, or the reason why there is none, and write the file."""
        self.data["runs"].setdefault(model, {}).setdefault(peer, {})[variant] = found
        self.write()

    def record_server(self, name: str, found: dict[str, Any]) -> None:
        """The same for a server."""
        self.data["servers"][name] = found
        self.write()

    def write(self) -> None:
        """Whole or not at all."""
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.data, indent=1) + "\n")
        unfinished.rename(self.path)


def results_path(isa: str) -> Path:
    """Where results of this processor are."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{cpu_name()} {isa}".lower()).strip("-")
    return FOLDER / f"peers-{name}.json"


def cpu_name() -> str:
    """As the kernel has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def last_level_cache() -> int | None:
    """Bytes of the largest cache of the first processor, where the kernel says so."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1))
    return max(sizes, default=None)


def machine_facts(measured: dict[str, Any], isa: str) -> dict[str, Any]:
    """What the head of the page says."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "isa": isa,
        "memory_bytes": memory,
        "last_level_cache_bytes": last_level_cache(),
        "python": platform.python_version(),
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
        **measured,
    }
