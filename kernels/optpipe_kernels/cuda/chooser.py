"""``Chooser``: tokens of rows that have rules, or whose log-probabilities are wanted.

    logits [R, V] of the model's step ──edits──▶ rows ──draw──▶ tokens ──▶ log-probabilities, of the logits

The model's own step is a graph's replay or not, and the same whatever the rules are; these few kernels follow
it as they are: how many tokens the rules name changes with every step.
"""

from __future__ import annotations

import torch

from optpipe.targets.protocol import Draws

from . import drawing
from .operations import Operations
from .pending import Given
from .staging import Staging


class Chooser:
    """Chooses the tokens of steps that ``drawing.ruled`` tells.

    Args:
        operations: that draw.
        device: of the logits.
    """

    def __init__(self, operations: Operations, device: torch.device) -> None:
        self._operations, self._staging = operations, Staging(device)

    def choose(self, logits: torch.Tensor, draws: Draws) -> Given:
        """The tokens of rows.

        Args:
            logits: [R, V] float32, as the model gave them; they stay as they are.
            draws: of R rows.
        """
        rules = drawing.edit_arrays(draws)
        staged = self._staging.stage(rules | drawing.arrays(draws, len(logits)))
        rows = logits
        if rules:
            rows = self._operations.edited(logits, {name: staged[name] for name in rules})
        ids = self._operations.drawn(rows, staged[drawing.FLOATS], staged[drawing.INTEGERS])
        told = () if draws.top is None else self._operations.logprobs(logits, ids, draws.top)
        return Given(ids, logits, told)
