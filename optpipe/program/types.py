"""What a value is: a dtype and a shape whose sizes may be symbolic. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import ArtifactError, nearest
from .dims import INT_LIMIT, SYMBOL_PATTERN, Dim, canonical, symbols_of

DTYPE_BYTES = {
    "f64": 8,
    "f32": 4,
    "bf16": 2,
    "f16": 2,
    "i64": 8,
    "i32": 4,
    "i16": 2,
    "i8": 1,
    "u8": 1,
    "f8": 1,
    "bool": 1,
}
"""Every dtype a Program may hold, and its bytes an element; f8 is e4m3 without infinities."""

MAX_RANK = 16

RESERVED_WORDS = frozenset({*DTYPE_BYTES, "None", "true", "false", "inf", "nan"})
"""Words that mean something as a bare argument, so no symbol may be called that."""

_SYMBOL = re.compile(SYMBOL_PATTERN, re.ASCII)


def check_dtype(name: str) -> None:
    """Raise unless ``name`` is one of our dtype names.

    Raises:
        ArtifactError: it is not.
    """
    if name not in DTYPE_BYTES:
        raise ArtifactError(
            f"The dtype '{name}' is unknown.",
            hint=nearest(str(name), DTYPE_BYTES) or f"the dtypes are {', '.join(DTYPE_BYTES)}",
        )


def check_symbols(names: Iterable[str]) -> None:
    """Raise unless each of ``names`` can be told from the other bare words of the text.

    Raises:
        ArtifactError: a name is reserved or no identifier.
    """
    for name in names:
        if name in RESERVED_WORDS or not _SYMBOL.fullmatch(name):
            raise ArtifactError(
                f"The name '{name}' cannot be a symbolic size: it is reserved or no identifier."
            )


@dataclass(frozen=True, slots=True)
class TensorType:
    """The dtype and shape of one value.

    Args:
        dtype: one of ``DTYPE_BYTES``.
        shape: sizes; a string is an expression over symbols and is brought to its canonical text.

    Raises:
        ArtifactError: the dtype is unknown, a size is negative, too large or no expression.

    >>> str(TensorType("f32", ("T*2", 576)))
    'f32[2*T, 576]'
    """

    dtype: str
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if len(self.shape) > MAX_RANK:
            raise ArtifactError(
                f"A shape has {len(self.shape)} dimensions; at most {MAX_RANK} are supported."
            )
        object.__setattr__(self, "shape", tuple(_checked_dim(dim) for dim in self.shape))

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def _checked_dim(dim: Dim) -> Dim:
    if isinstance(dim, str):
        dim = canonical(dim)
        if isinstance(dim, str):
            check_symbols(symbols_of(dim))
            return dim
    if isinstance(dim, bool) or not isinstance(dim, int) or not 0 <= dim < INT_LIMIT:
        raise ArtifactError(f"A shape holds {dim!r} where a size from 0 to 2^63 - 1 should be.")
    return dim
