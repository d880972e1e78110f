"""Rows of 8 bits: norms that write them for the one product that reads them. Torch-free.

rms_norm → row_wise_linear       → rms_norm_codes → row_wise_codes
add_rms_norm → row_wise_linear   → add_rms_norm_codes → row_wise_codes

A norm that somebody else reads too stays, and its readers round for themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from optpipe.program.program import Value
from optpipe.program.types import TensorType

from .recipes import EightBits
from .steps import Step

NORMS = ("rms_norm", "add_rms_norm")


def round_in_norms(steps: Iterable[Step], output: str) -> list[Step]:
    """Put the rounding of activations into the norm before it.

    Args:
        output: the name of the model's result, which must stay what it is.
    """
    steps = list(steps)
    readers = Counter(name for step in steps for name in step.reads())
    makers = {step.results[0].name: step for step in steps if step.kernel in NORMS and step.results}
    made: dict[int, Step] = {}
    for step in steps:
        x = step.args[0] if step.kernel == "row_wise_linear" else None
        norm = makers.get(x.name) if isinstance(x, Value) else None
        if norm is None or not isinstance(x, Value) or readers[x.name] != 1 or x.name == output:
            continue
        weight = step.args[1]
        assert isinstance(weight, EightBits), f"{weight = } of a row-wise layer"
        codes = Value(f"{x.name}.codes", TensorType(weight.kind, x.type.shape))
        scale = Value(f"{x.name}.scale", TensorType("f32", x.type.shape[:-1]))
        made[id(norm)] = replace(
            norm,
            kernel=f"{norm.kernel}_codes",
            kwargs={**norm.kwargs, "kind": weight.kind},
            results=(codes, scale, *norm.results[1:]),
        )
        made[id(step)] = replace(step, kernel="row_wise_codes", args=(codes, scale, *step.args[1:]))
    return [made.get(id(step), step) for step in steps]
