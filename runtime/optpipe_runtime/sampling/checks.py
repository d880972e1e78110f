"""Refusals of field values that no request may have: one whole sentence each, which names the field."""

from __future__ import annotations

import math
from collections.abc import Iterable

from optpipe.errors import RequestError


def number(name: str, value: object, low: float, high: float, *, above: bool = False) -> float:
    """A finite number from ``low`` (or above it) to ``high``.

    Raises:
        RequestError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number, got {kind(value)}.")
    bound = f"over {low:g}" if above else f"at least {low:g}"
    if not math.isfinite(value) or value > high or value < low or (above and value == low):
        raise RequestError(f"{name} must be {bound} and at most {high:g}, got {shown(value)}.")
    return float(value)


def integer(name: str, value: object, low: int, high: int) -> int:
    """An integer from ``low`` to ``high``.

    Raises:
        RequestError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be an integer, got {kind(value)}.")
    if not low <= value <= high:
        raise RequestError(f"{name} must be from {low} to {high}, got {shown(value)}.")
    return value


def flag(name: str, value: object) -> bool:
    """True or false.

    Raises:
        RequestError: it is neither.
    """
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, got {kind(value)}.")
    return value


def strings(name: str, value: object, most: int, length: int) -> tuple[str, ...]:
    """Non-empty strings, at most ``most`` of at most ``length`` characters; None is none, one string is one.

    Raises:
        RequestError: they are too many, too long, empty or no strings.
    """
    found = _items(name, [value] if isinstance(value, str) else value, most, "strings")
    for it in found:
        if not isinstance(it, str):
            raise RequestError(f"{name} must hold strings, got {kind(it)}.")
        if not it:
            raise RequestError(f"{name} must not hold an empty string.")
        if len(it) > length:
            raise RequestError(f"A string of {name} may have {length} characters at most, got {len(it)}.")
    return tuple(str(it) for it in found)


def token_ids(name: str, value: object, most: int) -> tuple[int, ...]:
    """Token ids from 0 on, at most ``most``; None is none. Whether the vocabulary has them is asked later.

    Raises:
        RequestError: they are too many, negative or no integers.
    """
    found = _items(name, value, most, "token ids")
    return tuple(integer(f"A token id of {name}", it, 0, 2**31 - 1) for it in found)


def inside_vocabulary(name: str, ids: Iterable[int], vocab_size: int) -> None:
    """Check that the model has these tokens.

    Raises:
        RequestError: it lacks one.
    """
    for it in ids:
        if it >= vocab_size:
            raise RequestError(
                f"{name} names the token id {it}, but the vocabulary ends at {vocab_size - 1}."
            )


def kind(value: object) -> str:
    """What a value is, for a sentence: its type, not its content."""
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def shown(value: float) -> str:
    """A number for a sentence, never thousands of digits of it."""
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "a number of more than 20 digits"
    return f"{value:g}"


def _items(name: str, value: object, most: int, what: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list | tuple | set | frozenset):
        raise RequestError(f"{name} must be a list of {what}, got {kind(value)}.")
    if len(value) > most:
        raise RequestError(f"{name} may hold {most} {what} at most, got {len(value)}.")
    return sorted(value) if isinstance(value, set | frozenset) else list(value)
