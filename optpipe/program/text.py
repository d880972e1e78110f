"""A Program as text. One statement a line; ``parse_program`` reads exactly what ``print_program`` writes.

    optpipe.program 1
    input %input_ids: i64[T]
    cache %k_cache.0: f32[P, 16, 3, 64]
    weight @model.norm.weight: f32[576] stored bf16
    %5: f32[T, 576], %6: f32[T, 576] = optpipe.add_rms_norm(%3, %4, @model.norm.weight, eps=1e-05)  # model
    return %5

Arguments: ``%value``, ``@weight``, integers, floats (with a point, an exponent, or ``inf`` and ``nan``),
``"text"``, ``true``, ``false``, ``None``, dtypes (``f32``), sizes (``2*T``), and lists of these in brackets.
Blank lines and lines that start with ``#`` say nothing.
"""

from __future__ import annotations

from .parser import FORMAT, HEADER, parse_program
from .program import Arg, Node, Program, Value

__all__ = ["FORMAT", "parse_program", "print_node", "print_program"]


def print_program(program: Program) -> str:
    """The text of ``program``, ending in a newline. It is plain ASCII."""
    lines = [f"{HEADER} {FORMAT}"]
    lines += [f"{item.kind} {_definition(item.value)}" for item in program.inputs]
    lines += [f"weight @{w.name}: {w.type} stored {w.stored}" for w in program.weights.values()]
    lines += [print_node(node) for node in program.nodes]
    lines.append(" ".join(["return", ", ".join(map(str, program.outputs))]).rstrip())
    return "\n".join(lines) + "\n"


def print_node(node: Node) -> str:
    """One node's line, without the newline."""
    given = [_argument(arg) for arg in node.args]
    given += [f"{name}={_argument(arg)}" for name, arg in node.kwargs.items()]
    call = f"{node.op}({', '.join(given)})"
    if node.results:
        call = f"{', '.join(map(_definition, node.results))} = {call}"
    return f"{call}  # {node.path}" if node.path else call


def _definition(value: Value) -> str:
    return f"%{value.name}: {value.type}"


def _argument(arg: Arg) -> str:
    if isinstance(arg, bool):
        return "true" if arg else "false"
    if isinstance(arg, float):
        return repr(arg)
    if isinstance(arg, str):
        return '"' + "".join(map(_escaped, arg)) + '"'
    if isinstance(arg, tuple):
        return f"[{', '.join(map(_argument, arg))}]"
    return str(arg)


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if " " <= character <= "~" else f"\\u{{{ord(character):x}}}"
