"""What calibrated algorithms are given: text, run through the graph as it stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..graph.interpreter import Interpreter, Observer
from ..graph.nodes import input_name, value
from ..weights.store import Weights
from .probes import Probes


@dataclass(frozen=True)
class Calibration:
    """Windows of calibration text.

    Attributes:
        probes: where the text comes from; its own windows are never among those given here.
    """

    probes: Probes

    def windows(self, count: int) -> list[torch.Tensor]:
        """``count`` windows of token ids [T]."""
        return self.probes.calibration(count)

    def observe(self, gm: fx.GraphModule, weights: Weights, count: int, observer: Observer) -> None:
        """Run ``count`` windows through a graph without a cache, telling ``observer`` of each call."""
        interpreter = Interpreter(gm, weights, observe=observer)
        for ids in self.windows(count):
            interpreter.run(dict(inputs_of(gm, ids)))


def inputs_of(gm: fx.GraphModule, ids: torch.Tensor) -> Iterator[tuple[str, Any]]:
    """Inputs of a graph without a cache for one sequence; logits of its last row where it lets one choose."""
    given = {
        "input_ids": ids,
        "position_ids": torch.arange(len(ids)),
        "logit_rows": torch.tensor([len(ids) - 1]),
    }
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            tensor = given[input_name(node)]
            yield input_name(node), tensor[None] if value(node).dim() == 2 else tensor
