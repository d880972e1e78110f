"""The packages that this room needs, and what to say when they are missing."""

from __future__ import annotations

from importlib.util import find_spec

from optpipe.errors import KernelError


def missing() -> str | None:
    """The first package that is not installed, or None."""
    return next((it for it in ("onnx", "onnxruntime") if find_spec(it) is None), None)


IDLE_ROWS = (1, 32)  # ``GroupQueryAttention`` takes ``query_seqlens``: a row of a batch may sit out a run
INNER_NORMS = (1, 32)  # ``GroupQueryAttention`` takes ``q_norm_weight``, on the CUDA provider
ROUTED_EXPERTS = (1, 31)  # ``QMoE`` takes ``router_weights``, which the graph's router has made


def runtime() -> tuple[int, ...]:
    """The installed ONNX Runtime's version, its first two numbers."""
    import onnxruntime

    return tuple(int(it) for it in onnxruntime.__version__.split(".")[:2])


def needed() -> None:
    """Raise unless everything is installed.

    Raises:
        KernelError: the hint has the command.
    """
    if (name := missing()) is not None:
        raise KernelError(f"ONNX needs the package '{name}'.", hint="pip install 'optpipe[onnx]'")
