"""The text of a Program: what it looks like, that it reads back, and what is refused with which line."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time

import pytest

from optpipe.errors import ArtifactError
from optpipe.program import (
    DType,
    Expr,
    Input,
    Node,
    Program,
    TensorType,
    Value,
    Weight,
    WeightRef,
    parse_program,
    print_program,
)

SAMPLE = r"""optpipe.program 1
input %input_ids: i64[T]
input %query_start: i32[B + 1]
cache %k_cache.0: f32[P, 16, 3, 64]
weight @model.norm.weight: f32[576] stored bf16
weight @model.table-1.weight_packed: i32[4, 8] stored i32
%0: f32[T, 576] = aten.embedding(@model.norm.weight, %input_ids, -1)
%1: f32[2*T, 288] = aten.view(%0, [2*T, 288])  # model.layers.0
%2: f32[T, 576], %3: f32[T, 576] = optpipe.add_rms_norm(%0, %0, @model.norm.weight, eps=1e-05)  # model
optpipe.kv_write(%0, %0, %k_cache.0, %k_cache.0, None)  # model.layers.0.self_attn
%4: bool[] = aten.any()
%5: f32[T] = aten.x(true, false, None, f32, -inf, inf, nan, 1.0, [], [[1], [T, -2]], "a\"\\\u{a}#)", kind="")
%6: f32[(T + 1)//2] = aten.slice.Tensor(%5, 0, (T + 1)//2, -T + 3)
return %2, %3
"""


def test_prints_back_what_it_reads():
    assert print_program(parse_program(SAMPLE)) == SAMPLE


def test_reads_every_kind_of_argument():
    program = parse_program(SAMPLE)
    args = program.nodes[5].args
    assert args[:6] == (True, False, None, DType("f32"), -math.inf, math.inf)
    assert math.isnan(args[6])
    assert (args[7], type(args[7])) == (1.0, float)
    assert args[8:10] == ((), ((1,), (Expr("T"), -2)))
    assert args[10] == 'a"\\\n#)'
    assert program.nodes[5].kwargs == {"kind": ""}
    assert program.nodes[6].args[2:] == (Expr("(T + 1)//2"), Expr("-T + 3"))
    assert program.inputs[2].kind == "cache"
    assert program.weights["model.norm.weight"].stored == "bf16"
    assert program.nodes[2].results[1].name == "3"
    assert program.nodes[3].results == ()
    assert program.nodes[3].path == "model.layers.0.self_attn"


def test_symbols_stand_in_order_of_first_use():
    assert parse_program(SAMPLE).symbols == ("T", "B", "P")


def test_weight_bytes_are_of_the_stored_dtype():
    assert parse_program(SAMPLE).weights["model.norm.weight"].bytes == 576 * 2


def test_blank_lines_comments_and_spacing_say_nothing():
    loose = (
        "\n# made by hand\noptpipe.program 1\r\n  input   %x : f32[ T,4 ]\n\n"
        "%0 : f32[T*2,2]=aten.view( %x,[ T + T ,2 ] )#a\nreturn   %0"
    )
    assert print_program(parse_program(loose)) == (
        "optpipe.program 1\ninput %x: f32[T, 4]\n%0: f32[2*T, 2] = aten.view(%x, [2*T, 2])  # a\nreturn %0\n"
    )


def test_a_program_without_outputs_reads_back():
    text = "optpipe.program 1\nreturn\n"
    assert parse_program(text) == Program((), {}, (), ())
    assert print_program(parse_program(text)) == text


X = "input %x: f32[T, 4]"

# A body (the header is put before it), the line of the error, and what the error says.
MALFORMED = {
    "unknown dtype": ("input %x: f31[T]", 2, "dtype 'f31' is unknown"),
    "negative size": ("input %x: f32[-4]", 2, "size from 0"),
    "bad size": ("input %x: f32[T +]", 2, "ends where"),
    "empty size": ("input %x: f32[4,,4]", 2, "ends where"),
    "rank": (f"input %x: f32[{', '.join('1' * 17)}]", 2, "17 dimensions"),
    "reserved symbol": ("input %x: f32[None]", 2, "'None' cannot be a symbolic size"),
    "no type": ("input %x", 2, "malformed"),
    "bad input name": ("input %x-y: f32[4]", 2, "malformed"),
    "junk after a type": ("input %x: f32[4] stored", 2, "malformed"),
    "weight without a stored dtype": ("weight @w: f32[4]", 2, "malformed"),
    "weight with an unknown stored dtype": ("weight @w: f32[4] stored q4", 2, "dtype 'q4' is unknown"),
    "weight of a symbolic shape": ("weight @w: f32[T] stored f32", 2, "symbolic shape"),
    "weight with an empty part": ("weight @a..b: f32[4] stored f32", 2, "dotted parameter name"),
    "weight twice": (
        "weight @w: f32[4] stored f32\nweight @w: f32[4] stored f32",
        3,
        "'@w' is declared twice",
    ),
    "input twice": (f"{X}\n{X}", 3, "'%x' is defined twice"),
    "result twice": (f"{X}\n%x: f32[T, 4] = aten.neg(%x)", 3, "'%x' is defined twice"),
    "two results of one name": (f"{X}\n%0: f32[T], %0: f32[T] = aten.max(%x)", 3, "'%0' is defined twice"),
    "undefined value": (f"{X}\n%0: f32[T, 4] = aten.neg(%y)", 3, "'%y' is used before it is defined"),
    "own result": (f"{X}\n%0: f32[T, 4] = aten.neg(%0)", 3, "'%0' is used before"),
    "undeclared weight": (f"{X}\n%0: f32[T, 4] = aten.mul(%x, @w)", 3, "'@w' is not declared"),
    "declaration below": (
        f"{X}\n%0: f32[T, 4] = aten.neg(%x)\ninput %y: f32[4]",
        4,
        "declarations come first",
    ),
    "bad operation": (f"{X}\n%0: f32[T, 4] = neg(%x)", 3, "no statement"),
    "default overload": (f"{X}\n%0: f32[T, 4] = aten.neg.default(%x)", 3, "no operation name"),
    "no operation": (f"{X}\n%0: f32[T, 4] =", 3, "no statement"),
    "no equals sign": (f"{X}\n%0: f32[T, 4] aten.neg(%x)", 3, "malformed"),
    "unclosed call": (f"{X}\n%0: f32[T, 4] = aten.neg(%x", 3, "should be"),
    "unclosed list": (f"{X}\n%0: f32[T, 4] = aten.view(%x, [1, 2)", 3, "']' should be"),
    "unclosed text": (f'{X}\n%0: f32[T, 4] = aten.neg(%x, "abc)', 3, "without a closing quote"),
    "unclosed expression": (f"{X}\n%0: f32[T, 4] = aten.neg(%x, (T + 1", 3, "has no end"),
    "bad escape": (f'{X}\n%0: f32[T, 4] = aten.neg(%x, "\\n")', 3, "no escape"),
    "escape beyond Unicode": (f'{X}\n%0: f32[T, 4] = aten.neg(%x, "\\u{{110000}}")', 3, "no escape"),
    "missing argument": (f"{X}\n%0: f32[T, 4] = aten.neg(%x, , 1)", 3, "argument should be"),
    "trailing comma": (f"{X}\n%0: f32[T, 4] = aten.neg(%x,)", 3, "argument should be"),
    "positional after named": (f"{X}\n%0: f32[T, 4] = aten.neg(a=1, %x)", 3, "after a named one"),
    "named twice": (f"{X}\n%0: f32[T, 4] = aten.neg(a=1, a=2)", 3, "'a' is given twice"),
    "named in a list": (f"{X}\n%0: f32[T, 4] = aten.neg([a=1])", 3, "named argument 'a'"),
    "bad expression": (f"{X}\n%0: f32[T, 4] = aten.neg(T ** 2)", 3, "where a number"),
    "a call as argument": (f"{X}\n%0: f32[T, 4] = aten.neg(open(T))", 3, "where it should end"),
    "integer of 65 bits": (f"{X}\n%0: f32[T, 4] = aten.neg({2**63})", 3, "64 bits"),
    "integer of 6000 digits": (f"{X}\n%0: f32[T, 4] = aten.neg({'9' * 6000})", 3, "64 bits"),
    "float beyond range": (f"{X}\n%0: f32[T, 4] = aten.neg(1e999)", 3, "too large"),
    "nesting": (f"{X}\n%0: f32[T, 4] = aten.neg({'[' * 2000}{']' * 2000})", 3, "nested deeper"),
    "junk after a call": (f"{X}\n%0: f32[T, 4] = aten.neg(%x) %x", 3, "stands after the operation"),
    "path with a space": (f"{X}\n%0: f32[T, 4] = aten.neg(%x)  # a b", 3, "stands after the operation"),
    "junk": (f"{X}\nimport os", 3, "no statement"),
    "return of a weight": ("weight @w: f32[4] stored f32\nreturn @w", 3, "cannot be returned"),
    "return of the unknown": ("return %0", 2, "used before it is defined"),
    "after return": (f"{X}\nreturn %x\n{X}", 4, "where the program ends"),
    "a long line": (f"# {'x' * 2**20}", 2, "characters long"),
}


@pytest.mark.parametrize(("body", "line", "problem"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_text_is_refused_with_its_line(body, line, problem):
    with pytest.raises(ArtifactError) as caught:
        parse_program(f"optpipe.program 1\n{body}\nreturn\n")
    assert caught.value.message.startswith(f"Line {line} of the program text: ")
    assert problem in caught.value.message
    assert caught.value.message.endswith(".")
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("return\n", "no program header"),
        ("optpipe.program one\n", "no program header"),
        ("optpipe.program 0\nreturn\n", "never existed"),
        ("optpipe.program 1\ninput %x: f32[4]\n", "without a 'return'"),
        ("\x00\x01\x02", "no program header"),
    ],
)
def test_text_that_is_no_program_is_refused(text, problem):
    with pytest.raises(ArtifactError, match=problem):
        parse_program(text)


def test_a_newer_format_asks_for_a_newer_optpipe():
    with pytest.raises(ArtifactError, match="format 2; this version of optpipe reads up to 1") as caught:
        parse_program("optpipe.program 2\nsomething new\n")
    assert caught.value.hint == "install a newer optpipe"


def test_a_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(ArtifactError) as caught:
        parse_program(
            SAMPLE.replace("[T]\n", "[T]\n", 1).replace(
                "@model.norm.weight, %input_ids", "@model.norm.wieght, %input_ids"
            )
        )
    assert caught.value.hint == "did you mean 'model.norm.weight'?"


def _value(name: str = "0", dtype: str = "f32") -> Value:
    return Value(name, TensorType(dtype, ("T",)))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Value("a b", TensorType("f32", ())), "cannot be called 'a b'"),
        (lambda: Weight('a"b', TensorType("f32", ()), "f32"), "cannot be called"),
        (lambda: Node("aten.neg", path="a b"), "printable"),
        (lambda: Node("aten.neg", kwargs={"a b": 1}), "no identifier"),
        (lambda: Node("aten.neg", (object(),)), "type object"),
        (lambda: Node("aten.neg", ([1],)), "type list"),
        (lambda: Node("aten.neg", (2**63,)), "64 bits"),
        (lambda: Expr("4"), "it is the integer 4"),
        (lambda: Expr("f32"), "cannot be a symbolic size"),
        (lambda: DType("float"), "dtype 'float' is unknown"),
        (lambda: Input(_value(), "state"), "'input' or 'cache'"),
        (lambda: Program((), {}, (), (_value(),)), "used before"),
        (lambda: Program((Input(_value()),), {}, (), (_value(dtype="f16"),)), r"used as f16\[T\] but"),
        (lambda: Program((), {}, (Node("aten.neg", (WeightRef("w"),)),), ()), "not declared"),
        (lambda: Program((), {"v": Weight("w", TensorType("f32", ()), "f32")}, (), ()), "under the name 'v'"),
    ],
)
def test_nothing_that_cannot_be_printed_can_be_made(make, problem):
    with pytest.raises(ArtifactError, match=problem):
        make()


def test_the_text_needs_neither_torch_nor_numpy():
    code = (
        "import sys, optpipe.program as p; p.parse_program('optpipe.program 1\\nreturn\\n');"
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_thirty_layers_are_read_at_once():
    text = _thirty_layers()
    assert len(parse_program(text).nodes) == 600
    assert print_program(parse_program(text)) == text
    seconds = min(_seconds_to_parse(text) for _ in range(5))
    assert seconds < 0.05, f"{seconds = } must leave room in the start-up budget of 0.7 s"


def _seconds_to_parse(text: str) -> float:
    start = time.perf_counter()
    parse_program(text)
    return time.perf_counter() - start


def _thirty_layers() -> str:
    """As many nodes, weights and kinds of argument as a quantized model of 30 layers."""
    weights, nodes = [], []
    for index in range(600):
        path = f"model.layers.{index // 20}.self_attn.proj_{index % 20}"
        before = f"%{index - 1}" if index else "%x"
        if index % 2:
            names = [f"@{path}.weight_packed", f"@{path}.weight_scale", f"@{path}.weight_minimum"]
            types = ("i32[576, 72] stored i32", "f32[576, 18] stored f16", "f32[576, 18] stored f16")
            weights += [f"weight {name}: {type_}" for name, type_ in zip(names, types, strict=True)]
            call = f"optpipe.quant_linear({before}, {', '.join(names)}, None, bits=4, group=32)"
        else:
            call = f"aten.view({before}, [T, 9, 64])"
        nodes.append(f"%{index}: f32[T, 576] = {call}  # {path}")
    return "\n".join(["optpipe.program 1", "input %x: f32[T, 576]", *weights, *nodes, "return %599", ""])


def test_every_error_is_one_line():
    for body, _, _ in MALFORMED.values():
        with pytest.raises(ArtifactError) as caught:
            parse_program(f"optpipe.program 1\n{body}\nreturn\n")
        assert not re.search(r"[\x00-\x1f]", caught.value.message)
