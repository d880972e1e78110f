"""How a step's tokens are drawn, as arrays that are staged with the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import RequestError
from optpipe.targets.protocol import Draws, Edits

TOP = 32  # of the likeliest tokens, at most
FLOATS, INTEGERS = "draw_floats", "draw_integers"
_LIKELIEST = (1.0, 1.0, -np.inf), (1, 0, 0)  # of padding
NOTHING = Draws(np.zeros((0, 3)), np.zeros((0, 3), np.int64))


def check(draws: Draws | None, rows: int, vocab_size: int, *, able: bool) -> None:
    """Refuse draws that are not those of the step.

    Raises:
        RequestError: there are not as many as rows of logits, or nothing here can draw; edits name tokens,
            rows or masks that are not there.
    """
    if draws is None:
        return
    if not able:
        raise RequestError("Tokens cannot be drawn on the device here: there is no kernel for it.")
    if draws.floats.shape != (rows, 3) or draws.integers.shape != (rows, 3):
        raise RequestError(
            f"A step of {rows} logit rows has draws for {len(draws.floats)} and {len(draws.integers)}."
        )
    if draws.top is not None and not 0 <= draws.top <= TOP:
        raise RequestError(f"Log-probabilities of {draws.top} tokens were asked for; 0 to {TOP} can be told.")
    if draws.edits is not None:
        _check_edits(draws.edits, rows, vocab_size)


def _check_edits(edits: Edits, rows: int, vocab_size: int) -> None:
    """Nothing that a kernel would read or write lies past its rows."""
    count = len(edits.tokens)
    shapes = {
        "starts": (rows + 1,), "biases": (count,), "counts": (count,), "flags": (count,),
        "penalties": (rows, 3), "masked": (rows,),
    }  # fmt: skip
    for name, shape in shapes.items():
        if getattr(edits, name).shape != shape:
            raise RequestError(
                f"Edits of {rows} rows and {count} tokens have {name} {getattr(edits, name).shape}."
            )
    starts, masks = edits.starts, edits.masks
    if starts[0] != 0 or starts[-1] != count or (np.diff(starts) < 0).any():
        raise RequestError(f"The rows of edits do not divide their {count} tokens.")
    if count and not 0 <= edits.tokens.min() <= edits.tokens.max() < vocab_size:
        raise RequestError(f"Edits name tokens outside the vocabulary of {vocab_size}.")
    if rows and edits.masked.max() >= len(masks):
        raise RequestError(f"Rows take mask {edits.masked.max()} of {len(masks)}.")
    if len(masks) and 32 * masks.shape[1] < vocab_size:
        raise RequestError(f"Masks have bits for {32 * masks.shape[1]} of {vocab_size} tokens.")


def ruled(draws: Draws) -> bool:
    """Whether more is wanted than a draw from the model's own logits."""
    return draws.edits is not None or draws.top is not None


def edit_arrays(draws: Draws) -> dict[str, NDArray[Any]]:
    """The arrays of what is done to the rows first."""
    return {} if draws.edits is None else dict(vars(draws.edits))


def arrays(draws: Draws | None, rows: int) -> dict[str, NDArray[Any]]:
    """The arrays of a step padded to ``rows``; none where its tokens are not drawn."""
    if draws is None:
        return {}
    floats, integers = np.empty((rows, 3)), np.empty((rows, 3), np.int64)
    floats[:], integers[:] = _LIKELIEST
    floats[: len(draws.floats)], integers[: len(draws.integers)] = draws.floats, draws.integers
    return {FLOATS: floats, INTEGERS: integers}
