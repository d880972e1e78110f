"""Any Program prints and reads back as itself, and any text is a Program or an ArtifactError."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from optpipe.errors import ArtifactError
from optpipe.program import (
    DTYPE_BYTES,
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

PROPERTY = settings(deadline=None, derandomize=True)

DTYPES = st.sampled_from(list(DTYPE_BYTES))
NAMES = st.text("abcXYZ019_.", min_size=1, max_size=6)
WEIGHT_NAMES = st.lists(st.text("abcXYZ019_-", min_size=1, max_size=4), min_size=1, max_size=3).map(".".join)
SYMBOLIC = st.sampled_from(
    ["T", "2*T", "B + 1", "(T + 1)//2", "T*B - 3", "-T + 8", "2*(T//(B + 1))", "P//16"]
)
DIMS = st.one_of(st.integers(0, 2**40), SYMBOLIC)
TYPES = st.builds(TensorType, DTYPES, st.lists(DIMS, max_size=4).map(tuple))
FIXED_TYPES = st.builds(TensorType, DTYPES, st.lists(st.integers(0, 4096), max_size=3).map(tuple))
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(st.characters(), max_size=8),
    DTYPES.map(DType),
    SYMBOLIC.map(Expr),
)
OPS = st.sampled_from(["aten.add.Tensor", "aten.view", "aten.__and__.Scalar", "optpipe.rope", "a.b"])
PATHS = st.sampled_from(["", "model", "model.layers.0.self_attn", "a[0]/<b>"])
KEYWORDS = st.sampled_from(["eps", "kind", "group_size", "None", "inf", "f32"])


@st.composite
def programs(draw: st.DrawFn) -> Program:
    values: dict[str, Value] = {}

    def new_values(least: int, most: int) -> tuple[Value, ...]:
        names = draw(
            st.lists(NAMES.filter(lambda n: n not in values), min_size=least, max_size=most, unique=True)
        )
        made = tuple(Value(name, draw(TYPES)) for name in names)
        values.update({value.name: value for value in made})
        return made

    inputs = tuple(Input(v, draw(st.sampled_from(["input", "cache"]))) for v in new_values(1, 3))
    weights = {n: Weight(n, draw(FIXED_TYPES), draw(DTYPES)) for n in draw(st.sets(WEIGHT_NAMES, max_size=3))}
    nodes = []
    for _ in range(draw(st.integers(0, 4))):
        leaves = [PLAIN, st.sampled_from(list(values.values()))]
        if weights:
            leaves.append(st.sampled_from(list(weights)).map(WeightRef))
        args = st.recursive(st.one_of(leaves), lambda a: st.lists(a, max_size=3).map(tuple), max_leaves=6)
        given_args = tuple(draw(st.lists(args, max_size=4)))
        kwargs = draw(st.dictionaries(KEYWORDS, args, max_size=2))
        nodes.append(Node(draw(OPS), given_args, kwargs, new_values(0, 3), draw(PATHS)))
    outputs = tuple(draw(st.lists(st.sampled_from(list(values.values())), max_size=3)))
    return Program(inputs, weights, tuple(nodes), outputs)


@given(programs())
@PROPERTY
def test_what_is_printed_reads_back_as_itself(program):
    text = print_program(program)
    again = parse_program(text)
    assert repr(again) == repr(program)  # repr tells 1 from 1.0 and True, and nan from nothing
    assert print_program(again) == text
    assert text.isascii()


@given(programs(), st.data())
@settings(PROPERTY, max_examples=300)
def test_damaged_text_is_a_program_or_an_artifact_error(program, data):
    text = print_program(program)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        until = data.draw(st.integers(at, min(at + 6, len(text))))
        text = text[:at] + data.draw(st.text('%@[](),:="\\#*/+-. \n1Tfx\x00²é', max_size=3)) + text[until:]
    _check(text)


@given(st.text(max_size=80))
@PROPERTY
def test_any_text_is_a_program_or_an_artifact_error(text):
    _check(text)
    _check(f"optpipe.program 1\n{text}\nreturn")
    _check(f"optpipe.program 1\n%0: f32[4] = aten.a({text})\nreturn %0")
    _check(f"optpipe.program 1\ninput %x: {text}\nreturn %x")


def _check(text: str) -> None:
    try:
        program = parse_program(text)
    except ArtifactError:
        return
    printed = print_program(program)
    assert print_program(parse_program(printed)) == printed
