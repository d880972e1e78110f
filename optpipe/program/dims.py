"""Integer expressions over symbolic sizes: ``T``, ``2*T``, ``(T + 1)//2``.

Grammar (Python's own precedence and rounding):

    sum     = product {("+" | "-") product}
    product = factor {("*" | "//") factor}
    factor  = ["-"] (integer | symbol | "(" sum ")")

Every expression has one canonical form, a sum of products with integer coefficients: terms of higher degree
first, then by name, the constant last. ``T*2 + 0`` and ``T + T`` are both ``2*T``. A floor division is
canonical too: what divides exactly leaves it, so that ``(4*T + 6)//4`` is ``T + 1``.
Two expressions with the same text are equal; two with different texts may still be.

Nothing here imports torch, and nothing is evaluated by Python.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

from ..errors import ArtifactError, nearest

Dim = int | str
"""A size: an integer, or the canonical text of an expression over symbols."""

INT_LIMIT = 2**63  # sizes and arguments are 64-bit integers in every target
_MAX_TEXT = 512  # characters; the longest we have seen in a real model is 30
_MAX_DEPTH = 16  # parentheses
_MAX_TERMS = 64
_MAX_DEGREE = 8

SYMBOL_PATTERN = r"[A-Za-z_][A-Za-z0-9_]*"
_TOKEN = re.compile(rf"\s*(?:(\d+)|({SYMBOL_PATTERN})|(//|[-+*()]))", re.ASCII)


@dataclass(frozen=True, slots=True)
class Quotient:
    """``numerator // denominator``, rounded down, where it cannot be written without a division."""

    numerator: Sum
    denominator: Sum

    def __str__(self) -> str:
        return f"{_operand(self.numerator)}//{_operand(self.denominator)}"


Atom = str | Quotient
Product = tuple[Atom, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """An expression in canonical form: ``((product, coefficient), …)``, no coefficient zero."""

    terms: tuple[tuple[Product, int], ...]

    @property
    def constant(self) -> int | None:
        """The value, when no symbol is in it."""
        if not self.terms:
            return 0
        product, coefficient = self.terms[0]
        return coefficient if not product else None

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        text = ""
        for product, coefficient in self.terms:
            leading_minus = not text and coefficient < 0
            term = _term_text(product, abs(coefficient), bare_quotient=not leading_minus)
            sign = "-" if coefficient < 0 else "+"
            text = f"{text} {sign} {term}" if text else f"-{term}" if leading_minus else term
        return text


def integer(value: int) -> Sum:
    """The expression that is just ``value``."""
    return _sum_of({(): value})


def symbol(name: str) -> Sum:
    """The expression that is just the symbol ``name``."""
    return Sum((((name,), 1),))


def add(left: Sum, right: Sum) -> Sum:
    """``left + right``."""
    terms = dict(left.terms)
    for product, coefficient in right.terms:
        terms[product] = terms.get(product, 0) + coefficient
    return _sum_of(terms)


def multiply(left: Sum, right: Sum) -> Sum:
    """``left * right``, multiplied out."""
    terms: dict[Product, int] = {}
    for product_a, coefficient_a in left.terms:
        for product_b, coefficient_b in right.terms:
            product = tuple(sorted(product_a + product_b, key=_atom_key))
            terms[product] = terms.get(product, 0) + coefficient_a * coefficient_b
    return _sum_of(terms)


def negate(value: Sum) -> Sum:
    """``-value``."""
    return Sum(tuple((product, -coefficient) for product, coefficient in value.terms))


def subtract(left: Sum, right: Sum) -> Sum:
    """``left - right``."""
    return add(left, negate(right))


def floor_divide(left: Sum, right: Sum) -> Sum:
    """``left // right``, rounded down; whatever divides exactly is taken out of the division."""
    divisor = right.constant
    if divisor is None:
        exact = _exact_quotient(left, right)
        return exact if exact is not None else Sum((((Quotient(left, right),), 1),))
    if divisor == 0:
        raise ArtifactError(f"The size expression '({left})//0' divides by zero.")
    if divisor < 0:
        left, divisor = negate(left), -divisor
    whole: dict[Product, int] = {}
    rest: dict[Product, int] = {}
    for product, coefficient in left.terms:
        if not product:
            whole[product], rest[product] = divmod(coefficient, divisor)
        elif coefficient % divisor == 0:
            whole[product] = coefficient // divisor
        else:
            rest[product] = coefficient
    return add(_sum_of(whole), _fraction(_sum_of(rest), divisor))


def _fraction(rest: Sum, divisor: int) -> Sum:
    """``rest // divisor`` where no term of ``rest`` divides exactly: the smallest form of the division."""
    if rest.constant is not None:
        return integer(rest.constant // divisor)
    common = math.gcd(divisor, *(coefficient for product, coefficient in rest.terms if product))
    rest = _sum_of({product: coefficient // common for product, coefficient in rest.terms})
    divisor //= common
    if len(rest.terms) == 1 and rest.terms[0][1] == 1 and len(rest.terms[0][0]) == 1:
        inner = rest.terms[0][0][0]
        if isinstance(inner, Quotient) and (inner.denominator.constant or 0) > 0:
            return floor_divide(inner.numerator, multiply(inner.denominator, integer(divisor)))
    return Sum((((Quotient(rest, integer(divisor)),), 1),))


def _exact_quotient(left: Sum, right: Sum) -> Sum | None:
    """``left // right`` where ``right`` is one product that divides every term; symbols are not 0."""
    if left == right:
        return integer(1)
    if len(right.terms) != 1:
        return None
    divisor, scale = right.terms[0]
    terms: dict[Product, int] = {}
    for product, coefficient in left.terms:
        remaining = list(product)
        for atom in divisor:
            if atom not in remaining:
                return None
            remaining.remove(atom)
        if coefficient % scale:
            return None
        terms[tuple(remaining)] = coefficient // scale
    return _sum_of(terms)


def _sum_of(terms: Mapping[Product, int]) -> Sum:
    kept = [(product, coefficient) for product, coefficient in terms.items() if coefficient]
    if len(kept) > _MAX_TERMS or any(len(product) > _MAX_DEGREE for product, _ in kept):
        raise ArtifactError(
            f"A size expression has {len(kept)} terms or a product of more than {_MAX_DEGREE} sizes; "
            f"at most {_MAX_TERMS} terms are supported."
        )
    if any(abs(coefficient) > INT_LIMIT for _, coefficient in kept):
        raise ArtifactError("A size expression holds a number that does not fit in 64 bits.")
    kept.sort(key=lambda term: (-len(term[0]), [_atom_key(atom) for atom in term[0]]))
    return Sum(tuple(kept))


def _atom_key(atom: Atom) -> tuple[bool, str]:
    return (isinstance(atom, Quotient), str(atom))


def _term_text(product: Product, coefficient: int, *, bare_quotient: bool) -> str:
    """``coefficient * product``; ``-T//2`` would read as ``(-T)//2``, so there the quotient is not bare."""
    if len(product) == 1 and coefficient == 1 and bare_quotient:
        return str(product[0])
    factors = [str(atom) if isinstance(atom, str) else f"({atom})" for atom in product]
    return "*".join(factors if coefficient == 1 and factors else [str(coefficient), *factors])


def _operand(value: Sum) -> str:
    """``value`` as one side of ``//``: bare when it is a symbol or a number, else in parentheses."""
    text = str(value)
    return text if text.isidentifier() or text.isdigit() else f"({text})"


class _Reader:
    """Recursive descent over the tokens of one expression; no Python evaluation anywhere."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[str] = []
        position = 0
        stripped = text.rstrip()
        while position < len(stripped):
            match = _TOKEN.match(stripped, position)
            if match is None:
                self.fail(f"has an unexpected character '{stripped[position]}'")
            self.tokens.append(match[match.lastindex or 0])
            position = match.end()
        self.next = 0

    def fail(self, what: str) -> NoReturn:
        raise ArtifactError(
            f"The size expression '{self.text}' {what}.",
            hint="only integers, symbols, + - * // and parentheses may appear",
        )

    def take(self, *wanted: str) -> str | None:
        """The next token if it is one of ``wanted``, consumed; else None."""
        if self.next < len(self.tokens) and self.tokens[self.next] in wanted:
            self.next += 1
            return self.tokens[self.next - 1]
        return None

    def whole(self) -> Sum:
        result = self.sum(0)
        if self.next != len(self.tokens):
            self.fail(f"has '{self.tokens[self.next]}' where it should end")
        return result

    def sum(self, depth: int) -> Sum:
        result = self.product(depth)
        while (sign := self.take("+", "-")) is not None:
            right = self.product(depth)
            result = add(result, right) if sign == "+" else subtract(result, right)
        return result

    def product(self, depth: int) -> Sum:
        result = self.factor(depth)
        while (sign := self.take("*", "//")) is not None:
            right = self.factor(depth)
            result = multiply(result, right) if sign == "*" else floor_divide(result, right)
        return result

    def factor(self, depth: int) -> Sum:
        if depth > _MAX_DEPTH:
            self.fail(f"is nested deeper than {_MAX_DEPTH} levels")
        if self.take("-"):
            return negate(self.factor(depth + 1))
        if self.take("("):
            result = self.sum(depth + 1)
            if not self.take(")"):
                self.fail("has an unclosed parenthesis")
            return result
        if self.next == len(self.tokens):
            self.fail("ends where a number or a symbol should be")
        token = self.tokens[self.next]
        self.next += 1
        if token[0].isdigit():
            return integer(int(token))
        if token[0] in "+-*/()":
            self.fail(f"has '{token}' where a number or a symbol should be")
        return symbol(token)


@lru_cache(maxsize=4096)
def parse_dim(text: str) -> Sum:
    """The expression that ``text`` spells.

    Raises:
        ArtifactError: the text is not in the grammar, is too long, too deep or too large.

    >>> str(parse_dim("T*2 + 1 + T"))
    '3*T + 1'
    """
    if len(text) > _MAX_TEXT:
        raise ArtifactError(
            f"A size expression is {len(text)} characters long; at most {_MAX_TEXT} are supported."
        )
    return _Reader(text).whole()


def simplify(value: Sum) -> Dim:
    """``value`` as a dim: an int when no symbol is in it, else its canonical text.

    Raises:
        ArtifactError: the canonical text is too long or too deep to be read back.
    """
    if value.constant is not None:
        return value.constant
    text = str(value)
    depth = deepest = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    if (
        len(text) > _MAX_TEXT or 2 * deepest >= _MAX_DEPTH
    ):  # a level may cost two: its parenthesis and a minus
        raise ArtifactError(
            f"A size expression is {len(text)} characters long and {deepest} levels deep; "
            f"at most {_MAX_TEXT} and {_MAX_DEPTH // 2 - 1} are supported."
        )
    return text


@lru_cache(maxsize=4096)
def canonical(text: str) -> Dim:
    """The canonical dim that ``text`` spells: an int when no symbol is left in it.

    >>> canonical("1+B"), canonical("T - T + 4")
    ('B + 1', 4)
    """
    return simplify(parse_dim(text))


def evaluate(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The value of ``dim`` when every symbol has the value that ``sizes`` gives it.

    Raises:
        ArtifactError: a symbol has no value, or a division is by zero.

    >>> evaluate("(T + 1)//2", {"T": 7})
    4
    """
    return dim if isinstance(dim, int) else _value_of(parse_dim(dim), sizes)


def _value_of(value: Sum, sizes: Mapping[str, int]) -> int:
    total = 0
    for product, coefficient in value.terms:
        for atom in product:
            coefficient *= _atom_value(atom, sizes)
        total += coefficient
    return total


def _atom_value(atom: Atom, sizes: Mapping[str, int]) -> int:
    if isinstance(atom, Quotient):
        divisor = _value_of(atom.denominator, sizes)
        if divisor == 0:
            raise ArtifactError(f"The size expression '{atom}' divides by zero.")
        return _value_of(atom.numerator, sizes) // divisor
    if atom not in sizes:
        raise ArtifactError(f"The symbolic size '{atom}' has no value.", hint=nearest(atom, sizes))
    return sizes[atom]


def symbols_of(dim: Dim) -> tuple[str, ...]:
    """The symbols in ``dim``, each once, in the order its text names them.

    >>> symbols_of("(T + B)//2 + T")
    ('T', 'B')
    """
    return () if isinstance(dim, int) else tuple(dict.fromkeys(_symbols(parse_dim(dim))))


def _symbols(value: Sum) -> Iterator[str]:
    for product, _ in value.terms:
        for atom in product:
            if isinstance(atom, Quotient):
                yield from _symbols(atom.numerator)
                yield from _symbols(atom.denominator)
            else:
                yield atom
