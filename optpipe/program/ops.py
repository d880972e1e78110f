"""Which torch operations a graph may hold, and their names in a Program.

The rule for ATen: functional, gives tensors, draws nothing at random, and takes a tensor or is one of the
factories listed. So nothing that a Program can name reaches a file, a device, a random state or memory that
it was not given.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from functools import cache, lru_cache

import torch
from torch._ops import OpOverload, OpOverloadPacket

from ..errors import ArtifactError, nearest
from .types import DTYPE_BYTES

NAMESPACES = ("aten", "optpipe")

FACTORIES = frozenset({"arange", "eye", "full", "linspace", "ones", "scalar_tensor", "zeros"})
"""ATen operations that take no tensor and are allowed all the same."""

PRIVATE = frozenset(
    {
        "__and__",  # what `a & b` exports as
        "__lshift__",
        "__or__",
        "__rshift__",
        "__xor__",
        "_grouped_mm",  # the experts of recent transformers
        "_log_softmax",
        "_safe_softmax",
        "_softmax",
        "_to_copy",
        "_unsafe_view",
    }
)
"""ATen operations that torch calls its own (a leading underscore) and that models need all the same."""

SYMBOLIC_OPS = frozenset(
    {
        operator.add,
        operator.floordiv,
        operator.mod,
        operator.mul,
        operator.neg,
        operator.sub,
        torch.ops.aten.sym_size.int,
    }
)
"""Arithmetic on symbolic sizes. In a Program it stands inline in the arguments."""

PLACES = ("device", "layout", "pin_memory")
"""Arguments that say where a tensor lies. A graph says what is computed, so it may not give them."""

DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "f8": torch.float8_e4m3fn,
    "bool": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Operations that draw random numbers unless an argument is false or zero: its index, name and default.
_RANDOM_UNLESS = {
    torch.ops.aten.dropout.default: (2, "train", True),
    torch.ops.aten.scaled_dot_product_attention.default: (4, "dropout_p", 0.0),
}

_REFUSED = (
    (r"as_strided.*|set|resize.*|data|slice_inverse", "reaches memory outside its operands"),
    (r"empty.*|new_empty.*", "gives uninitialized memory"),
    (
        r"(cudnn|fbgemm|miopen|mkldnn|quantized)_.*|.*(mkldnn|sparse|nested|pin_memory).*",
        "is tied to one device or layout",
    ),
    (r".*_backward", "belongs to training"),
)


def dtype_name(dtype: torch.dtype) -> str:
    """Our name of a torch dtype.

    Raises:
        ArtifactError: a Program has no such dtype (complex, float8 e5m2, …).
    """
    if dtype not in _DTYPE_NAMES:
        raise ArtifactError(
            f"A Program has no dtype for {dtype}.", hint=f"the dtypes are {', '.join(DTYPE_BYTES)}"
        )
    return _DTYPE_NAMES[dtype]


def op_name(op: OpOverload) -> str:
    """The name of an operation in a Program: ``aten.add.Tensor``, ``aten.view``."""
    name = op._schema.name.replace("::", ".")
    return name if op._overloadname == "default" else f"{name}.{op._overloadname}"


def find_op(name: str) -> OpOverload:
    """The allowed operation of that name.

    Raises:
        ArtifactError: there is none, or it is not allowed.
    """
    namespace, base, overload = (*name.split("."), "default")[:3]
    packet = getattr(getattr(torch.ops, namespace), base, None) if namespace in NAMESPACES else None
    if not isinstance(packet, OpOverloadPacket) or overload not in packet.overloads():
        raise ArtifactError(f"The operation '{name}' is unknown.", hint=nearest(name, _known_names()))
    op: OpOverload = getattr(packet, overload)
    if (reason := why_not(op)) is not None:
        raise ArtifactError(f"The operation '{name}' is not allowed in a graph: it {reason}.")
    return op


@lru_cache(maxsize=1)
def _known_names() -> tuple[str, ...]:
    prefixes = tuple(f"{namespace}::" for namespace in NAMESPACES)
    names = torch._C._dispatch_get_all_op_names()
    return tuple(name.replace("::", ".") for name in names if name.startswith(prefixes))


@cache
def why_not(op: OpOverload) -> str | None:
    """Why a graph may not hold ``op``, as the rest of a sentence that starts with it; None when it may."""
    if op.namespace == "optpipe":
        return None
    if op.namespace != "aten":
        return f"is of the namespace '{op.namespace}', not one of {', '.join(NAMESPACES)}"
    base = op._schema.name.removeprefix("aten::")
    if base.startswith("_") and base not in PRIVATE:
        return "is private to torch"
    for pattern, reason in _REFUSED:
        if re.fullmatch(pattern, base):
            return reason
    if op._schema.is_mutable:
        return "writes to its operands"
    if torch.Tag.nondeterministic_seeded in op.tags and op not in _RANDOM_UNLESS:
        return "draws random numbers"
    if not op._schema.returns or not all(_is_tensor(item.type) for item in op._schema.returns):
        return "gives something other than tensors"
    takes_tensor = any("Tensor" in str(argument.type) for argument in op._schema.arguments)
    return None if takes_tensor or base in FACTORIES else "takes no tensor and is not a known factory"


def why_not_call(op: OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object]) -> str | None:
    """As ``why_not``, of one call: what can drop out at random is allowed where it does not."""
    if op in _RANDOM_UNLESS:
        index, name, default = _RANDOM_UNLESS[op]
        if args[index] if index < len(args) else kwargs.get(name, default):
            return "draws random numbers"
    return why_not(op)


def gives_one_tensor(op: OpOverload) -> bool:
    """Whether a call gives a tensor itself, rather than a tuple or list of tensors (or nothing)."""
    returns = op._schema.returns
    return len(returns) == 1 and str(returns[0].type) == "Tensor"


def argument_name(op: OpOverload, index: int) -> str:
    """The schema's name of positional argument ``index``; empty when there are fewer."""
    arguments = op._schema.arguments
    return str(arguments[index].name) if index < len(arguments) else ""


def _is_tensor(type_: object) -> bool:
    return str(type_) in ("Tensor", "List[Tensor]")
