"""Read the text of a Program. Written by hand, strict, and it executes nothing.

Whatever the text holds, the result is a Program or an ``ArtifactError`` that names the line.
"""

from __future__ import annotations

import math
import re

from ..errors import ArtifactError
from .dims import INT_LIMIT
from .program import (
    MAX_NESTING,
    OP_NAME,
    PATH,
    VALUE_NAME,
    WEIGHT_NAME,
    Arg,
    DType,
    Expr,
    Input,
    Node,
    Program,
    Scope,
    Value,
    Weight,
    WeightRef,
)
from .types import DTYPE_BYTES, TensorType

HEADER = "optpipe.program"
FORMAT = 1
"""The format this version writes; it reads no newer one."""

_MAX_TEXT = 64 * 2**20  # characters; a 100-layer model of experts is under 1 MiB
_MAX_LINE = 2**20  # characters

_FLAGS = re.ASCII
_HEADER = re.compile(rf"{re.escape(HEADER)} (\d{{1,9}})", _FLAGS)
_TYPE = re.compile(r"(\w+)\[([^\[\]]*)\]", _FLAGS)
_DEFINITION = re.compile(rf"%({VALUE_NAME})\s*:\s*(\w+\[[^\[\]]*\])\s*", _FLAGS)
_WEIGHT = re.compile(rf"weight @({WEIGHT_NAME})\s*:\s*(\w+\[[^\[\]]*\]) stored (\w+)", _FLAGS)
_CALL = re.compile(rf"({OP_NAME})\(\s*", _FLAGS)
_END = re.compile(rf"\s*(?:#\s*({PATH})\s*)?", _FLAGS)
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', _FLAGS)
_ESCAPE = re.compile(r"\\(?:([\"\\])|u\{([0-9a-f]{1,6})\}|(.?))", _FLAGS | re.DOTALL)
_FLOAT = re.compile(r"-?(?:\d+\.\d*(?:e[+-]?\d+)?|\d+e[+-]?\d+|inf)|nan", _FLAGS)
_WORDS: dict[str, Arg] = {"None": None, "true": True, "false": False, "inf": math.inf, "-inf": -math.inf}
_WORDS |= {"nan": math.nan, **{name: DType(name) for name in DTYPE_BYTES}}

# One argument, and the comma or bracket after it. The common kinds are told apart by the expression itself.
_ARGUMENT = re.compile(
    rf"(?:(?P<keyword>[A-Za-z_]\w*)=)?(?:%(?P<value>{VALUE_NAME})|@(?P<weight>{WEIGHT_NAME})"
    r'|(?P<integer>-?\d+)(?=\s*[,\])])|(?P<list>\[)|(?P<string>")|(?P<bare>[^\s%@\[\]",)=][^%@\[\]",=]*))\s*',
    _FLAGS,
)


def parse_program(text: str) -> Program:
    """The Program that ``text`` spells; the inverse of ``print_program``.

    Raises:
        ArtifactError: the text is malformed, inconsistent, absurdly large, or of a newer format.
    """
    if len(text) > _MAX_TEXT:
        raise ArtifactError(
            f"The program text is {len(text)} characters long; at most {_MAX_TEXT} are supported."
        )
    parser = _Parser()
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            parser.statement(line)
        except ArtifactError as error:
            raise ArtifactError(
                f"Line {number} of the program text: {error.message}", hint=error.hint
            ) from None
    return parser.program()


class _Parser:
    """The state between lines."""

    def __init__(self) -> None:
        self.scope = Scope()
        self.types: dict[str, TensorType] = {}
        self.bare: dict[str, Arg] = dict(_WORDS)
        self.inputs: list[Input] = []
        self.nodes: list[Node] = []
        self.outputs: tuple[Value, ...] | None = None
        self.started = False

    def program(self) -> Program:
        """What was read, once the text is at its end."""
        if not self.started:
            raise ArtifactError(f"The program text is empty; expected it to start with '{HEADER} {FORMAT}'.")
        if self.outputs is None:
            raise ArtifactError("The program text ends without a 'return' line: it is cut short.")
        return Program(tuple(self.inputs), self.scope.weights, tuple(self.nodes), self.outputs)

    def statement(self, line: str) -> None:
        """Read one line."""
        if len(line) > _MAX_LINE:
            raise ArtifactError(f"It is {len(line)} characters long; at most {_MAX_LINE} are supported.")
        line = line.strip(" \t\r")
        if not line or line[0] == "#":
            return
        if not self.started:
            self.header(line)
        elif self.outputs is not None:
            raise ArtifactError(f"{_quote(line)} stands after 'return', where the program ends.")
        elif line[0] == "%":
            self.node(line)
        elif line.startswith(("input ", "cache ", "weight ")):
            self.declaration(line)
        elif line == "return" or line.startswith("return "):
            self.outputs = self.returned(line[len("return") :].strip())
        else:
            self.node(line)

    def header(self, line: str) -> None:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise ArtifactError(f"{_quote(line)} is no program header; expected '{HEADER} {FORMAT}'.")
        if int(match[1]) > FORMAT:
            raise ArtifactError(
                f"The program has format {match[1]}; this version of optpipe reads up to {FORMAT}.",
                hint="install a newer optpipe",
            )
        if int(match[1]) != FORMAT:
            raise ArtifactError(f"The program has format {match[1]}, which never existed; expected {FORMAT}.")
        self.started = True

    def declaration(self, line: str) -> None:
        if self.nodes:
            raise ArtifactError(f"{_quote(line)} stands below the first operation; declarations come first.")
        if line.startswith("weight "):
            if (match := _WEIGHT.fullmatch(line)) is None:
                raise ArtifactError(
                    f"{_quote(line)} is malformed; expected 'weight @name: f32[4, 4] stored f16'."
                )
            self.scope.declare(Weight(match[1], self.type(match[2]), match[3]))
            return
        kind, _, rest = line.partition(" ")
        if (match := _DEFINITION.fullmatch(rest.lstrip())) is None:
            raise ArtifactError(f"{_quote(line)} is malformed; expected '{kind} %name: f32[T, 4]'.")
        value = Value(match[1], self.type(match[2]))
        self.scope.define(value)
        self.inputs.append(Input(value, "cache" if kind == "cache" else "input"))

    def returned(self, names: str) -> tuple[Value, ...]:
        values = []
        for name in names.split(",") if names else ():
            if not name.strip().startswith("%"):
                raise ArtifactError(
                    f"{_quote(name.strip())} cannot be returned; expected a value such as %0."
                )
            values.append(self.scope.value(name.strip()[1:]))
        return tuple(values)

    def node(self, line: str) -> None:
        results, position = self.definitions(line)
        call = _CALL.match(line, position)
        if call is None:
            raise ArtifactError(
                f"{_quote(line[position:])} is no statement; expected an operation such as aten.view(%0)."
            )
        arguments = _Arguments(self, line, call.end())
        end = _END.fullmatch(line, arguments.position)
        if end is None:
            raise ArtifactError(
                f"{_quote(line[arguments.position :])} stands after the operation; expected a '# path'."
            )
        self.nodes.append(Node(call[1], arguments.positional, arguments.keyword, results, end[1] or ""))
        for value in results:
            self.scope.define(value)

    def definitions(self, line: str) -> tuple[tuple[Value, ...], int]:
        """The results left of ``=``, and where the operation starts."""
        if line[0] != "%":
            return (), 0
        results = []
        position = 0
        while (match := _DEFINITION.match(line, position)) is not None:
            results.append(Value(match[1], self.type(match[2])))
            position = match.end()
            follows = line[position : position + 1]
            position += 1
            if follows == "=":
                return tuple(results), position + len(line[position:]) - len(line[position:].lstrip())
            if follows != ",":
                break
            position += len(line[position:]) - len(line[position:].lstrip())
        raise ArtifactError(f"{_quote(line)} is malformed; expected '%name: f32[T, 4] = operation(…)'.")

    def type(self, text: str) -> TensorType:
        """The type that ``text`` spells; each spelling is read once."""
        if (known := self.types.get(text)) is not None:
            return known
        match = _TYPE.fullmatch(text)
        if match is None:
            raise ArtifactError(f"{_quote(text)} is no type; expected one such as f32[T, 576].")
        dims = match[2].split(",") if match[2].strip() else []
        result = TensorType(match[1], tuple(dims))
        self.types[text] = result
        return result

    def word(self, text: str) -> Arg:
        """The argument that ``text`` spells bare: a keyword, dtype, float, or size; each is read once."""
        if text in self.bare:
            return self.bare[text]
        result: Arg
        if _FLOAT.fullmatch(text):
            result = float(text)
            if math.isinf(result):
                raise ArtifactError(f"{_quote(text)} is too large for a float.")
        else:
            result = Expr(text)
        self.bare[text] = result
        return result


class _Arguments:
    """The arguments of one operation, read at once; ``position`` is then after the closing parenthesis."""

    def __init__(self, parser: _Parser, line: str, position: int) -> None:
        self.parser = parser
        self.line = line
        self.position = position
        self.keyword: dict[str, Arg] = {}
        self.positional = self.items(")", 0)

    def items(self, closing: str, depth: int) -> tuple[Arg, ...]:
        """The arguments up to ``closing``; at depth 0, named ones go to ``keyword``."""
        found: list[Arg] = []
        line = self.line
        if line[self.position : self.position + 1] == closing:
            self.position += 1
            return ()
        while (match := _ARGUMENT.match(line, self.position)) is not None:
            self.position = match.end()
            argument = self.argument(match, depth)
            name = match["keyword"]
            if name is not None:
                self.name(name, argument, depth)
            elif depth == 0 and self.keyword:
                raise ArtifactError("A positional argument stands after a named one.")
            else:
                found.append(argument)
            follows = line[self.position : self.position + 1]
            self.position += 1
            if follows == closing:
                return tuple(found)
            if follows != ",":
                raise ArtifactError(
                    f"{_quote(line[self.position - 1 :])} stands where ',' or '{closing}' should be."
                )
            while line[self.position : self.position + 1] in (" ", "\t"):
                self.position += 1
        raise ArtifactError(f"{_quote(line[self.position :])} stands where an argument should be.")

    def name(self, name: str, argument: Arg, depth: int) -> None:
        if depth:
            raise ArtifactError(f"A list holds the named argument '{name}'.")
        if name in self.keyword:
            raise ArtifactError(f"The argument '{name}' is given twice.")
        self.keyword[name] = argument

    def argument(self, match: re.Match[str], depth: int) -> Arg:
        kind = match.lastgroup
        text = match[kind] if kind else ""
        scope = self.parser.scope
        if kind == "value":
            return scope.value(text)
        if kind == "weight":
            return WeightRef(scope.weight(text).name)
        if kind == "integer":
            return _integer(text)
        if kind == "list":
            return self.list(depth)
        if kind == "string":
            return self.string(match.start("string"))
        return self.bare(match.start("bare"))

    def list(self, depth: int) -> Arg:
        if depth >= MAX_NESTING:
            raise ArtifactError(f"Lists are nested deeper than {MAX_NESTING} levels.")
        items = self.items("]", depth + 1)
        self.skip_spaces()
        return items

    def string(self, start: int) -> str:
        match = _STRING.match(self.line, start)
        if match is None:
            raise ArtifactError(f"{_quote(self.line[start:])} is a text without a closing quote.")
        self.position = match.end()
        self.skip_spaces()
        return _ESCAPE.sub(_unescaped, match[1]) if "\\" in match[1] else match[1]

    def bare(self, start: int) -> Arg:
        """A word, float or size: up to the first ``,`` ``)`` or ``]`` outside parentheses."""
        depth = 0
        for end in range(start, len(self.line)):
            character = self.line[end]
            if depth == 0 and character in ",)]#":
                break
            depth += (character == "(") - (character == ")")
        else:
            raise ArtifactError(f"{_quote(self.line[start:])} has no end.")
        self.position = end
        return self.parser.word(self.line[start:end].rstrip())

    def skip_spaces(self) -> None:
        while self.line[self.position : self.position + 1] in (" ", "\t"):
            self.position += 1


def _integer(text: str) -> int:
    value = int(text) if len(text) <= 20 else INT_LIMIT
    if not -INT_LIMIT <= value < INT_LIMIT:
        raise ArtifactError(f"The integer {_quote(text)} does not fit in 64 bits.")
    return value


def _unescaped(match: re.Match[str]) -> str:
    if match[1] is not None:
        return match[1]
    code = int(match[2], 16) if match[2] is not None else -1
    if not 0 <= code <= 0x10FFFF:
        raise ArtifactError(
            f'{_quote(match[0])} is no escape; there are \\\\, \\" and \\u{{…}} in hexadecimal.'
        )
    return chr(code)


def _quote(text: str) -> str:
    """``text`` for a message: printable, and not a screenful."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")
