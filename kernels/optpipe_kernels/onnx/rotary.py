"""cos and sin of every position. A model computes them from positions alone, so they are worked out once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optpipe.program.program import Node, Program, Value

if TYPE_CHECKING:
    from .converter import Converter


@dataclass(frozen=True)
class Tables:
    """Initializers [positions, width / 2].

    Attributes:
        cos, sin: their names.
        width: channels of a head that are rotated.
    """

    cos: str
    sin: str
    width: int


@dataclass(frozen=True)
class Turned:
    """A rotation that is not in the model yet.

    Attributes:
        x: what is rotated, [T, H, D].
        tables: by what.
        interleaved: pairs are neighbours, not halves.
    """

    x: Value
    tables: Tables
    interleaved: bool


def rotary_tables(c: Converter, cos: Value, sin: Value, interleaved: bool) -> Tables | None:
    """Tables for the values of a Program; None when they are no function of the position, or pairs differ."""
    key = (cos.name, sin.name, interleaved)
    if key not in c.rotary:
        c.rotary[key] = _made(c, cos, sin, interleaved)
    return c.rotary[key]


def _made(c: Converter, cos: Value, sin: Value, interleaved: bool) -> Tables | None:
    needed = positional_nodes(c.program, (cos, sin))
    if needed is None:
        return None
    names = []
    for value, table in zip((cos, sin), _evaluate(c, needed, (cos, sin)), strict=True):
        half = table.shape[1] // 2
        first, second = (
            (table[:, 0::2], table[:, 1::2]) if interleaved else (table[:, :half], table[:, half:])
        )
        if not np.array_equal(first, second):
            return None
        names.append(c.writer.tensor(f"rotary.{value.name}", first))
    return Tables(names[0], names[1], width=2 * half)


def positional_nodes(program: Program, wanted: tuple[Value, ...]) -> list[Node] | None:
    """The nodes that make some values, in order; None when they need more than weights and positions."""
    makers = {value.name: node for node in program.nodes for value in node.results}
    needed: set[int] = set()
    open_ = [it.name for it in wanted]
    while open_:
        name = open_.pop()
        if name == "position_ids":
            continue
        node = makers.get(name)
        if node is None:
            return None
        if id(node) not in needed:
            needed.add(id(node))
            open_ += _values(node)
    return [node for node in program.nodes if id(node) in needed]


def _values(node: Node) -> Iterator[str]:
    return (it.name for it in node.operands() if isinstance(it, Value))


def _evaluate(c: Converter, nodes: list[Node], wanted: tuple[Value, ...]) -> list[NDArray[np.float32]]:
    """Run the nodes over every position by ONNX Runtime: [positions, width] each."""
    import onnxruntime

    from .convert import convert_node
    from .converter import Converter
    from .model import ModelWriter

    with TemporaryDirectory() as scratch, ModelWriter(Path(scratch), "data", 23) as writer:
        part = Converter(c.program, writer, c.options, c.read, c.plugins)
        part.names["position_ids"] = writer.input("position_ids", np.int64, ["tokens"])
        for node in nodes:
            convert_node(part, node)
        names = [part.name(it) for it in wanted]
        for name, value in zip(names, wanted, strict=True):
            writer.output(name, np.float32, ["tokens", *value.type.shape[1:]])
        path = writer.save("rotary.onnx", metadata={})
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return [
            np.asarray(it, np.float32)
            for it in session.run(list(dict.fromkeys(names)), {"position_ids": np.arange(c.options.context)})
        ]
