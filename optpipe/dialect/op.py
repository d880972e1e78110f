"""How an operation of the dialect is declared: one schema, one fake, one body.

The body is plain torch and is *the* truth: the reference target and every contract call it directly.
The dispatcher is where kernels for CPU and CUDA register; it falls back to the body, so that
``torch.ops.optpipe.NAME`` works on any device, but the reference never goes through it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import KernelError

Body = Callable[..., Any]

LIBRARY = torch.library.Library("optpipe", "DEF")


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        name: the name without the namespace, ``rope``.
        schema: what torch's dispatcher is told, ``rope(Tensor x, …) -> Tensor``.
        fake: result shapes and dtypes from operand shapes; touches no data.
        body: the meaning, in plain torch, accumulating in at least float32.
    """

    name: str
    schema: str
    fake: Body
    body: Body

    @property
    def overload(self) -> torch._ops.OpOverload:
        """The target that a graph node carries."""
        overload: torch._ops.OpOverload = getattr(torch.ops.optpipe, self.name).default
        return overload

    @property
    def doc(self) -> str:
        """The docstring of the body: shapes, meaning, source."""
        return inspect.getdoc(self.body) or ""


OPS: dict[str, Op] = {}


def define(schema: str, *, fake: Body) -> Callable[[Body], Body]:
    """Declare an operation whose body is the decorated function.

    Args:
        schema: a torch schema without namespace, ``rope(Tensor x, *, bool interleaved) -> Tensor``.
        fake: called with fake tensors; returns the results' shapes and dtypes as fake tensors.
    """

    def declare(body: Body) -> Body:
        name = schema.split("(", 1)[0]
        if name in OPS:
            raise KernelError(f"the dialect already has an op named '{name}'")
        LIBRARY.define(schema)
        LIBRARY.impl(name, body, "CompositeExplicitAutograd")
        torch.library.register_fake(f"optpipe::{name}", fake, lib=LIBRARY)
        OPS[name] = Op(name, schema, fake, body)
        return body

    return declare


def body_of(target: object) -> Body:
    """What the reference runs for a node's target: the body of a dialect op, else the target itself."""
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "optpipe":
        return OPS[target._schema.name.removeprefix("optpipe::")].body
    if not callable(target):
        raise KernelError(f"a node's target must be callable, got {target!r}")
    return target


def accumulator(x: torch.Tensor) -> torch.dtype:
    """The dtype a body accumulates in: float32, or float64 when the operand has it."""
    return torch.promote_types(x.dtype, torch.float32)
