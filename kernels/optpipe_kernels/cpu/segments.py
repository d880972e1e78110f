"""Nodes that no kernel does, run by torch between two parts of a plan. Torch is imported when there are any.

A segment reads and writes arrays over the plan's memory, so nothing is copied on the way in. Its operation is
looked up among those that a graph may hold, and runs on its reference body.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import ArtifactError, KernelError
from optpipe.program.dims import evaluate
from optpipe.program.program import Arg, DType, Expr, Node, Value, WeightRef

from .lowering.instruction import Segment
from .lowering.view import External

if TYPE_CHECKING:
    import torch

    from .plan import RunSegment

Given = Iterator["torch.Tensor"]


def run_segments(segments: Sequence[Segment]) -> RunSegment | None:
    """What runs these segments; None when there are none.

    Raises:
        ArtifactError: torch cannot run one of them, or is not installed.
    """
    if not segments:
        return None
    try:
        calls = {id(segment): _call(segment) for segment in segments}
    except ImportError:
        raise _refused(segments[0], "torch is not installed") from None

    def run(segment: Segment, arrays: list[NDArray[Any]], sizes: Mapping[str, int]) -> None:
        calls[id(segment)](arrays, sizes)

    return run


def _call(segment: Segment) -> Callable[[list[NDArray[Any]], Mapping[str, int]], None]:
    from optpipe.dialect import body_of
    from optpipe.program.ops import find_op, why_not_call

    node = segment.node
    for view in segment.reads:
        if view is not None and isinstance(view.place, External) and view.place.kind == "cache":
            raise _refused(segment, "it reads or writes the cache, whose layout is the kernels' own")
    op = find_op(node.op)
    if (reason := why_not_call(op, node.args, node.kwargs)) is not None:
        raise _refused(segment, f"it {reason}")
    return functools.partial(_run, node, body_of(op))


def _refused(segment: Segment, why: str) -> ArtifactError:
    node = segment.node
    return ArtifactError(
        f"The cpu target cannot run '{node.op}' of '{node.path}': {segment.reason};"
        f" torch cannot either: {why}.",
        hint="use --target reference",
    )


def _run(node: Node, body: Callable[..., Any], arrays: list[NDArray[Any]], sizes: Mapping[str, int]) -> None:
    import torch

    tensors = [_tensor(array) for array in arrays]
    outs = tensors[len(tensors) - len(node.results) :]
    given = iter(tensors)
    args = [_argument(arg, given, sizes) for arg in node.args]
    kwargs = {name: _argument(arg, given, sizes) for name, arg in node.kwargs.items()}
    with torch.no_grad():
        made = body(*args, **kwargs)
        for out, result in zip(outs, [made] if isinstance(made, torch.Tensor) else made, strict=True):
            if out.shape != result.shape:
                raise KernelError(
                    f"{node.op} gave {tuple(result.shape)}, where the plan has {tuple(out.shape)}"
                )
            out.copy_(result)


def _argument(arg: Arg, given: Given, sizes: Mapping[str, int]) -> Any:
    from optpipe.program.ops import DTYPES

    if isinstance(arg, Value | WeightRef):
        return next(given)
    if isinstance(arg, Expr):
        return evaluate(arg.text, sizes)
    if isinstance(arg, DType):
        return DTYPES[arg.name]
    return [_argument(item, given, sizes) for item in arg] if isinstance(arg, tuple) else arg


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """A tensor over an array; bfloat16 comes as uint16. Weights are mapped read-only and never written."""
    import torch

    if not array.flags.writeable:
        array = np.array(array)
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
