"""The child process that tries grammars; ``grammar_check.py`` starts it and draws what goes in and out."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from . import llguidance_adapter as adapter

MEMORY = 128 << 20  # bytes that a grammar may take


def main() -> None:
    """Answer line by line until the pipe is closed."""
    tokenizer = adapter.tokenizer(**json.loads(sys.stdin.readline()))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    _answer(None, 0)
    for line in sys.stdin:
        before = _address_space()
        if before:
            limit = before + MEMORY if most == resource.RLIM_INFINITY else min(most, before + MEMORY)
            resource.setrlimit(resource.RLIMIT_AS, (limit, most))
        _answer(*_tried(tokenizer, before, **json.loads(line)))


def _tried(tokenizer: Any, before: int, kind: str, source: str) -> tuple[str | None, int]:
    """What is wrong with a grammar, and the address space it takes over ``before`` while it lives."""
    try:
        found = adapter.matcher(tokenizer, kind, source)
        if not found.is_error():
            found.compute_bitmask()
        return str(found.get_error()) or None, max(0, _address_space() - before)
    except (ValueError, MemoryError) as error:
        return str(error) or "it takes too much memory", 0


def _address_space() -> int:
    """Bytes that this process has now; 0 where the system does not say, and then memory has no bound."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 0


def _answer(error: str | None, size: int) -> None:
    sys.stdout.write(json.dumps({"error": error, "bytes": size}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
