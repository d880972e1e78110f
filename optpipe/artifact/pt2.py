"""``optpipe export --format pt2``: one dense graph of ATen operations that ``torch.export.load`` runs alone.

The cache is left out: the graph takes one whole sequence, as other compilers expect. The dialect's operations
are written out as their bodies; attention looks at the sequence's own keys and values, and every expert
computes every token, since a graph of fixed operations cannot choose rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from ..dialect import body_of
from ..dialect.attention import attend
from ..dialect.mask import visible
from ..errors import ArtifactError
from ..graph.nodes import input_name
from .folder import written_whole
from .load import Artifact

MODEL = "model.pt2"
_TOKENS = 17  # of the example; the length stays symbolic


def export_pt2(artifact: Artifact, target: Path) -> None:
    """Write ``model.pt2``: (input_ids [T], position_ids [T]) → logits [T, V].

    Args:
        target: may not exist, or be an empty folder.

    Raises:
        ArtifactError: an operation cannot be traced, or ``target`` is taken.
    """
    module = Dense(artifact)
    ids = torch.zeros(_TOKENS, dtype=torch.int64)
    tokens = torch.export.Dim("tokens", min=2, max=1 << 20)
    shapes = {"input_ids": {0: tokens}, "position_ids": {0: tokens}}
    try:
        program = torch.export.export(module, (ids, torch.arange(_TOKENS)), dynamic_shapes=shapes)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise ArtifactError(f"torch.export cannot trace the artifact '{artifact.path}': {first}") from error
    with written_whole(target, replaceable=False) as folder:
        torch.export.save(program, folder / MODEL)


class Dense(nn.Module):
    """An artifact's graph over one whole sequence.

    Args:
        artifact: paged or not; its weights become buffers.
    """

    def __init__(self, artifact: Artifact) -> None:
        super().__init__()
        graph = artifact.graph()
        self._nodes = tuple(graph.graph.nodes)
        for node in self._nodes:
            if node.op == "get_attr":
                self.register_buffer(_flat(node), _stored(artifact, node))

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Logits [T, V] of every token."""
        known: dict[fx.Node, Any] = {}
        given = {"input_ids": input_ids, "position_ids": position_ids}
        written: dict[fx.Node, tuple[torch.Tensor, torch.Tensor]] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                known[node] = given.get(input_name(node))
            elif node.op == "get_attr":
                known[node] = getattr(self, _flat(node))
            elif node.op == "output":
                return _only(known[node.args[0]])
            else:
                known[node] = self._call(node, known, written)
        raise AssertionError("a graph ends with its output")

    def _call(self, node: fx.Node, known: dict[fx.Node, Any], written: dict[fx.Node, Any]) -> Any:
        args: Any = fx.node.map_arg(node.args, known.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, known.__getitem__)
        if node.target is torch.ops.optpipe.kv_write.default:
            written[node.args[2]] = args[0], args[1]  # type: ignore[index]
            return None
        if node.target is torch.ops.optpipe.paged_attention.default:
            return _attention(args[0], *written[node.args[1]], *args[6:], **kwargs)  # type: ignore[index]
        if node.target is torch.ops.optpipe.attention.default:
            return _attention(*args[:3], *args[4:], **kwargs)
        if node.target is torch.ops.optpipe.gather_rows.default:
            return args[0]
        return body_of(node.target)(*args, **kwargs)


def _flat(node: fx.Node) -> str:
    return str(node.target).replace(".", "_")


def _stored(artifact: Artifact, node: fx.Node) -> torch.Tensor:
    """A weight in the dtype that the graph computes in."""
    wanted = node.meta["val"].dtype
    loaded = artifact.weights[str(node.target)].load()
    return loaded.to(wanted) if wanted.is_floating_point else loaded


def _only(logits: Any) -> torch.Tensor:
    assert isinstance(logits, torch.Tensor), "a graph gives logits"
    return logits


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: torch.Tensor | None = None,
    alibi: torch.Tensor | None = None,
    *,
    scale: float,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    at = torch.arange(q.shape[0], device=q.device)
    seen = visible(at[:, None], at[None, :], window, chunk)
    out = attend(q, k, v, sinks, alibi, at, at, seen, scale=scale, softcap=softcap)
    return out.to(q.dtype)
