"""Rows of int8 as the linear layers of 8 bits that the kernels have. Torch-free.

    row_wise_linear(x, W i8 [N, K], scale [N, 1], bias)  →  quant_linear(x, words, scale, None, bias; 8 bits)

The words are the rows' own bytes with the sign bit turned: code + 128. Activations are rounded as for every
quantized layer here, to 15 bits by default, which is finer than the operation says, and to 8 if asked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import ArtifactError
from optpipe.program.program import Node, Program, WeightRef
from optpipe.program.types import TensorType

ROW_WISE = "optpipe.row_wise_linear"
_A_WORD = 4  # codes


def rows_of(program: Program) -> frozenset[str]:
    """The weights that are rows of int8.

    Raises:
        ArtifactError: a layer's rows are float8, or have no whole number of words.
    """
    found = set()
    for node in program.nodes:
        weight = node.args[1] if node.op == ROW_WISE else None
        if weight is None:
            continue
        kind = program.weights[weight.name].type if isinstance(weight, WeightRef) else None
        if kind is None or kind.dtype != "i8" or int(kind.shape[1]) % _A_WORD:
            held = "computed weights" if kind is None else f"rows of {kind.dtype} {list(kind.shape)}"
            raise ArtifactError(
                f"The cpu target multiplies rows of int8, and '{node.path}' has {held}.",
                hint="quant{scheme=w8a8} runs here; --target reference runs everything",
            )
        found.add(str(weight).removeprefix("@"))
    return frozenset(found)


def as_packed(program: Program) -> Program:
    """The same Program with packed layers in the place of rows; its weights are read by ``words``.

    Raises:
        ArtifactError: see ``rows_of``.
    """
    names = rows_of(program)
    if not names:
        return program
    weights = {
        name: replace(it, type=_words(it.type), stored="i32") if name in names else it
        for name, it in program.weights.items()
    }
    return replace(program, nodes=tuple(map(_packed, program.nodes)), weights=weights)


def _words(rows: TensorType) -> TensorType:
    return TensorType("i32", (rows.shape[0], int(rows.shape[1]) // _A_WORD))


def _packed(node: Node) -> Node:
    if node.op != ROW_WISE:
        return node
    x, weight, scale, *bias = node.args
    args = (x, weight, scale, None, bias[0] if bias else node.kwargs.get("bias"))
    return replace(node, op="optpipe.quant_linear", args=args, kwargs={"bits": 8, "group": -1})


def words(rows: NDArray[Any]) -> NDArray[np.int32]:
    """Rows [N, K] int8 as words [N, K/4] int32.

    >>> [hex(word) for word in words(np.array([[0, 1, -1, -128]], np.int8))[0]]
    ['0x7f8180']
    """
    return np.ascontiguousarray(rows.view(np.uint8) ^ np.uint8(0x80)).view(np.int32)
