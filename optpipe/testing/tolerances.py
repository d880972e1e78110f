"""How near is near enough. One table; a test that needs another number adds a row that says where it is from.

``assert_close(actual, expected, **tolerance("float32"))`` compares with ``atol + rtol · |expected|``.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Tolerance(NamedTuple):
    """A bound and where it comes from.

    Attributes:
        rtol: relative to the expected value.
        atol: absolute, for values of about one.
        origin: measurement or reasoning behind the numbers.
    """

    rtol: float
    atol: float
    origin: str


TOLERANCES: Final[dict[str, Tolerance]] = {
    "exact": Tolerance(0.0, 0.0, "the same operations on the same numbers in the same order"),
    "float64": Tolerance(
        1e-9, 1e-9, "tiny models packed against alone in float64: 1e-14 measured, five decimals to spare"
    ),
    "float32": Tolerance(
        1e-5, 2e-5, "tiny models packed against alone in float32: 4e-6 in logits of up to 5 measured"
    ),
    "float32 sum": Tolerance(
        1e-5, 1e-4, "sums of up to 1e4 products in another order: sqrt(1e4) · 2^-24 · 8 standard deviations"
    ),
    "float16": Tolerance(2e-3, 2e-3, "one rounding to 11 bits is 2^-11 = 5e-4; four in a row"),
    "bfloat16": Tolerance(1.6e-2, 1.6e-2, "one rounding to 8 bits is 2^-8 = 4e-3; four in a row"),
}


def tolerance(name: str) -> dict[str, float]:
    """A row of the table as keywords of ``torch.testing.assert_close``.

    >>> tolerance("exact")
    {'rtol': 0.0, 'atol': 0.0}
    """
    row = TOLERANCES[name]
    return {"rtol": row.rtol, "atol": row.atol}
