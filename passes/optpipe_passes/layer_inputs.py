"""What layers are fed on calibration text, streamed: every window at one node, then all at the next.

Only the values between two nodes are held, never one layer's weights beside another's, so that a model larger
than memory can be calibrated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from optpipe.errors import PassError
from optpipe.graph.interpreter import Interpreter
from optpipe.graph.nodes import input_name


class LayerInputs(Interpreter):
    """Runs a graph over several windows at once."""

    def stream(
        self, windows: Sequence[torch.Tensor], wanted: Mapping[fx.Node, fx.Node]
    ) -> Iterator[tuple[fx.Node, list[torch.Tensor]]]:
        """Each wanted node with its real input, a tensor a window, in the order of the graph.

        Args:
            windows: token ids [T] each.
            wanted: node → the operand to look at.
        """
        with torch.no_grad():
            yield from self._stream([self._feed(ids) for ids in windows], wanted)

    def _stream(
        self, values: list[dict[fx.Node, Any]], wanted: Mapping[fx.Node, fx.Node]
    ) -> Iterator[tuple[fx.Node, list[torch.Tensor]]]:
        left = len(wanted)
        for node in self._order:
            if node in wanted:
                yield node, [env[wanted[node]] for env in values]
                left -= 1
            if left == 0:
                return
            weight = self._load(node) if node.op == "get_attr" else None
            for env in values:
                env[node] = weight if node.op == "get_attr" else self._call(node, env)
                for done in self._done_after.get(node, ()):
                    env.pop(done, None)

    def _feed(self, ids: torch.Tensor) -> dict[fx.Node, Any]:
        """The graph's inputs for one sequence that starts at position 0, logits wanted for every token."""
        at = torch.arange(len(ids))
        known = {"input_ids": ids, "position_ids": at, "logit_rows": at}
        names = {input_name(node) for node in self._inputs}
        if names - known.keys():
            raise PassError(f"Calibration cannot feed a graph with the inputs {', '.join(sorted(names))}.")
        return {node: known[input_name(node)] for node in self._inputs}
