"""The lists that tell attention's kernels who computes what: made on the host, staged with a step's arrays.

Layers that see the same keys (window, chunk) and walk them in the same tiles share their lists. In a captured
step the lists have room for the longest contexts of its bucket; the kernels read how much of it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from optpipe.program.program import Value
from optpipe.targets.protocol import Ints, StepInputs

from .buckets import Shape as Bucket
from .steps import Step

_LISTS = ("item_start", "item_sequence", "block_sequence", "block_token")


@dataclass(frozen=True, slots=True)
class Layer:
    """What is static about one attention layer: see ``attention_work.Shape``."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None
    chunk: int | None


def layer_of(step: Step) -> Layer:
    """Of a step of paged attention."""
    q, keys, values = step.args[:3]
    assert isinstance(q, Value) and isinstance(keys, Value) and isinstance(values, Value), f"{step.args = }"
    window, chunk = step.kwargs.get("window"), step.kwargs.get("chunk")
    assert isinstance(window, int | None) and isinstance(chunk, int | None), f"{step.kwargs = }"
    heads, width = int(q.type.shape[1]), int(q.type.shape[2])
    return Layer(heads, int(keys.type.shape[2]), width, int(values.type.shape[3]), window, chunk)


class Counts(NamedTuple):
    """What the kernels are launched by."""

    tokens: int
    most_tokens: int
    most_items: int


class Lists:
    """Makes the lists of every step, for all layers of a model.

    Args:
        layers: of the model.
        kv_bytes: of a cached number.
        device: whose tiles are used.
        batch_invariant: as for the kernels.
    """

    def __init__(
        self, layers: Iterable[Layer], kv_bytes: int, device: torch.device, *, batch_invariant: bool
    ) -> None:
        from optpipe_kernels.triton import attention_work as work
        from optpipe_kernels.triton.tiles import device_key

        key = device_key(device)
        self._work = work
        self._kinds: dict[tuple[Any, ...], tuple[Any, Any]] = {}  # one a kind of lists
        self._kind_of: dict[Layer, tuple[Any, ...]] = {}
        for layer in layers:
            shape = work.Shape(
                layer.heads,
                layer.kv_heads,
                layer.head_dim,
                layer.value_dim,
                kv_bytes,
                layer.window,
                layer.chunk,
            )
            tiles = work.attention_tiles(shape, key, batch_invariant=batch_invariant)
            kind = (layer.window, layer.chunk, tiles.span, tiles.decode_tokens, tiles.prefill_tokens)
            self._kinds.setdefault(kind, (shape, tiles))
            self._kind_of[layer] = kind

    def arrays(
        self, step: StepInputs, bucket: Bucket | None, block: int
    ) -> tuple[dict[str, Ints], tuple[Counts, ...]]:
        """A step's lists, by the names that they are staged under, and what they are launched by.

        Args:
            bucket: of a captured step, to which the lists are padded; None for one that runs as it is.
            block: tokens a cache block.
        """
        arrays: dict[str, Ints] = {}
        counts = []
        for number, (shape, tiles) in enumerate(self._kinds.values()):
            if bucket is None:
                made = self._work.plan_work(
                    step.query_start.tolist(), step.context_lens.tolist(), shape, tiles
                )
                lists = {name: getattr(made, name) for name in _LISTS}
                counts.append(Counts(made.tokens, made.most_tokens, made.most_items))
            else:
                most = _most_spans(shape, tiles.span, bucket.blocks * block)
                room = min(most * bucket.sequences, bucket.context // tiles.span + bucket.sequences)
                lists = decode_lists(step, shape, tiles.span, room)
                counts.append(Counts(bucket.tokens, 1, most))
            arrays.update((f"{name}.{number}", lists[name]) for name in _LISTS)
        return arrays, tuple(counts)

    def works(self, views: Mapping[str, torch.Tensor], counts: tuple[Counts, ...]) -> dict[Layer, Any]:
        """The lists on the device, as the kernels take them, for every layer."""
        made = {}
        for number, kind in enumerate(self._kinds):
            lists = {name: views[f"{name}.{number}"] for name in _LISTS}
            tokens, most_tokens, most_items = counts[number]
            made[kind] = self._work.Work(
                **lists, tokens=tokens, most_tokens=most_tokens, most_items=most_items
            )
        return {layer: made[kind] for layer, kind in self._kind_of.items()}


def decode_lists(step: StepInputs, shape: Any, span: int, room: int) -> dict[str, Ints]:
    """The lists of a step whose sequences have one new token each, or none.

    Args:
        shape: ``attention_work.Shape``.
        span: keys an item.
        room: items that there is room for; of a sequence of c tokens there are at most c // span + 1.
    """
    contexts = step.context_lens.astype(np.int64)
    last = contexts - 1
    oldest = np.zeros_like(last)
    if shape.window is not None:
        oldest = np.maximum(oldest, last - shape.window + 1)
    if shape.chunk is not None:
        oldest = np.maximum(oldest, last // shape.chunk * shape.chunk)
    counts = np.where(np.diff(step.query_start) > 0, last // span - oldest // span + 1, 0)
    starts = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    sequences = np.zeros(room, np.int32)
    sequences[: starts[-1]] = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    none = np.zeros(0, np.int32)
    return {"item_start": starts, "item_sequence": sequences, "block_sequence": none, "block_token": none}


def _most_spans(shape: Any, span: int, context: int) -> int:
    """Items of one sequence of up to ``context`` tokens."""
    seen = min(it for it in (context, shape.window, shape.chunk) if it is not None)
    return min(-(-context // span), -(-seen // span) + 1)
