"""Operations that treat every token alike run on rows and columns, so that nothing is reshaped between the
embedding and the logits.
"""

from __future__ import annotations

from collections.abc import Callable

from optpipe.program.program import Arg, Node, Value

from ..converter import Converter, tensor_type

Bind = Callable[[Value, str], None]


def by_token(c: Converter, node: Node, *args: Arg) -> tuple[list[str], Bind]:
    """The names of some operands, and how to bind what is made of them: in rows where that fits.

    Args:
        args: tensors; values [T, width], weights of one dimension or of the operation's own.
    """
    if not on_rows(c, node):
        return [c.name(it) for it in args], c.bind
    return [c.row_name(it) if isinstance(it, Value) else c.name(it) for it in args], c.bind_rows


def on_rows(c: Converter, node: Node) -> bool:
    """Whether one operand is in rows and all others can be: what is made is in rows then."""
    values = [it for it in node.operands() if isinstance(it, Value)]
    for value in values:
        c.demand(value)
    shapes = [it.type.shape for it in (*values, *node.results)]
    if not all(len(it) == 2 and isinstance(it[0], str) and isinstance(it[1], int) for it in shapes):
        return False
    inside = [it.name in c.rows for it in values]
    return any(inside) and all(
        known or value.type.shape[0] == "T" for known, value in zip(inside, values, strict=True)
    )


def flat_weights(c: Converter, args: tuple[Arg, ...]) -> bool:
    """Whether the tensors among them that are no values have one dimension at most."""
    others = [it for it in args if it is not None and not isinstance(it, Value | bool | int | float | str)]
    return all(len(tensor_type(it, c.program).shape) <= 1 for it in others)


def ids_in_rows(c: Converter, ids: Arg) -> str | None:
    """[batch, sequence]: the model's own input, where an embedding looks it up."""
    if not c.options.microsoft or not isinstance(ids, Value):
        return None
    return {"input_ids": c.shared.get("id_rows"), "position_ids": c.shared.get("position_rows")}.get(ids.name)
