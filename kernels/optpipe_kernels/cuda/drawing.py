"""How a step's tokens are drawn, as arrays that are staged with the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import RequestError
from optpipe.targets.protocol import Draws

FLOATS, INTEGERS = "draw_floats", "draw_integers"
_LIKELIEST = (1.0, 1.0, -np.inf), (1, 0, 0)  # of padding
NOTHING = Draws(np.zeros((0, 3)), np.zeros((0, 3), np.int64))


def check(draws: Draws | None, rows: int, *, able: bool) -> None:
    """Refuse draws that are not those of the step.

    Raises:
        RequestError: there are not as many as rows of logits, or nothing here can draw.
    """
    if draws is None:
        return
    if not able:
        raise RequestError("Tokens cannot be drawn on the device here: there is no kernel for it.")
    if draws.floats.shape != (rows, 3) or draws.integers.shape != (rows, 3):
        raise RequestError(
            f"A step of {rows} logit rows has draws for {len(draws.floats)} and {len(draws.integers)}."
        )


def arrays(draws: Draws | None, rows: int) -> dict[str, NDArray[Any]]:
    """The arrays of a step padded to ``rows``; none where its tokens are not drawn."""
    if draws is None:
        return {}
    floats, integers = np.empty((rows, 3)), np.empty((rows, 3), np.int64)
    floats[:], integers[:] = _LIKELIEST
    floats[: len(draws.floats)], integers[: len(draws.integers)] = draws.floats, draws.integers
    return {FLOATS: floats, INTEGERS: integers}
