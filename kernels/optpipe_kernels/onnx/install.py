"""The packages that this room needs, and what to say when they are missing."""

from __future__ import annotations

from importlib.util import find_spec

from optpipe.errors import KernelError


def missing() -> str | None:
    """The first package that is not installed, or None."""
    return next((it for it in ("onnx", "onnxruntime") if find_spec(it) is None), None)


def needed() -> None:
    """Raise unless everything is installed.

    Raises:
        KernelError: the hint has the command.
    """
    if (name := missing()) is not None:
        raise KernelError(f"ONNX needs the package '{name}'.", hint="pip install 'optpipe[onnx]'")
