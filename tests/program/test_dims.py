"""Size expressions: one canonical form, and the same value as Python's own arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpipe.errors import ArtifactError
from optpipe.program.dims import canonical, evaluate, symbols_of

NAMES = ("T", "B", "R")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("T", "T"),
        ("T*2", "2*T"),
        ("T + T", "2*T"),
        ("1+B", "B + 1"),
        ("  ( T ) ", "T"),
        ("T - T + 4", 4),
        ("0", 0),
        ("5 - T", "-T + 5"),
        ("(4*T + 6)//4", "T + 1"),
        ("(6*T + 3)//9", "(2*T + 1)//3"),
        ("T//2//3", "T//6"),
        ("2*(T//2)", "2*(T//2)"),
        ("-(T//2)", "-(T//2)"),
        ("T*B//B", "T"),
        ("T//(B + 1)*2", "2*(T//(B + 1))"),
        ("(B + 1)*(B - 1)", "B*B - 1"),
    ],
)
def test_an_expression_has_one_canonical_form(text, expected):
    assert canonical(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "ends where"),
        ("T +", "ends where"),
        ("* T", "'*' where"),
        ("(T", "unclosed"),
        ("T)", "where it should end"),
        ("2 T", "where it should end"),
        ("T**2", "'*' where"),
        ("T/2", "unexpected character '/'"),
        ("T.x", "unexpected character"),
        ("f(T)", "where it should end"),
        ("T//0", "divides by zero"),
        ("T//(B - B)", "divides by zero"),
        ("(" * 40 + "T" + ")" * 40, "nested deeper"),
        ("-" * 40 + "T", "nested deeper"),
        ("9" * 30, "64 bits"),
        ("*".join("T" * 20), "product of more"),
        ("T" * 2000, "characters long"),
        ("//".join(["T", *"BR" * 20]), "levels deep"),
        ("\N{SUPERSCRIPT TWO}", "unexpected character"),
    ],
)
def test_a_malformed_expression_is_refused(text, problem):
    with pytest.raises(ArtifactError, match=problem.replace("*", r"\*").replace("(", r"\(")):
        canonical(text)


def test_evaluate_needs_every_symbol():
    assert evaluate(12, {}) == 12
    assert evaluate("B + T//2", {"T": 7, "B": 2}) == 5
    with pytest.raises(ArtifactError, match="'T' has no value") as caught:
        evaluate("2*T", {"TT": 1})
    assert caught.value.hint == "did you mean 'TT'?"
    with pytest.raises(ArtifactError, match="divides by zero"):
        evaluate("T//(B - 1)", {"T": 4, "B": 1})


def test_symbols_are_listed_once_in_order():
    assert symbols_of(7) == ()
    assert symbols_of(str(canonical("T//(B + 1) + R*T"))) == ("R", "T", "B")


ATOMS = st.sampled_from([*NAMES, "0", "1", "2", "3", "8", "64"])
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "//"]), inner).map(
            lambda parts: f"({''.join(parts)})"
        ),
        inner.map(lambda text: f"(-{text})"),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS, st.fixed_dictionaries({name: st.integers(1, 50) for name in NAMES}))
@settings(deadline=None, derandomize=True)
def test_canonical_form_keeps_the_value_and_is_stable(text, sizes):
    try:
        dim = canonical(text)
    except ArtifactError:  # too deep, or a division by what is always 0
        return
    assert canonical(str(dim)) == dim
    try:
        expected = _by_python(text, sizes)
    except ZeroDivisionError:
        return
    assert evaluate(dim, sizes) == expected


def _by_python(text: str, sizes: dict[str, int]) -> int:
    return int(eval(text, {"__builtins__": {}}, dict(sizes)))
