"""``cache``: keys and values are written to a cache of blocks as they are made.

Before: %y = optpipe.attention(%q, %k, %v, …)
After:  optpipe.kv_write(%k, %v, %k_cache.0, %v_cache.0, %slot_mapping); %y = optpipe.attention(%q, %k, %v, …)
Guards: layers that attend with the very same keys and values share one cache
Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from optpipe.graph.nodes import args_of, is_call, rank, shape
from optpipe.graph.propagate import new_symbol_tensor
from optpipe.pipeline import Pass, Stage
from optpipe.pipeline.context import PassContext

MOST_BLOCK = 1024  # tokens: a sequence wastes half a block, and a short one most of it


@dataclass(frozen=True)
class Cache(Pass):
    """Write every layer's keys and values to a block cache.

    Attributes:
        block: tokens a block.
    """

    name: ClassVar[str] = "cache"
    stage: ClassVar[Stage] = Stage.CACHE
    whole: ClassVar[bool] = True

    block: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.block <= MOST_BLOCK:
            raise ValueError(f"a block has from 1 to {MOST_BLOCK} tokens, got {self.block}")

    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        attentions = [node for node in graph.nodes if is_call(node, torch.ops.optpipe.attention)]
        if not attentions or any(is_call(node, torch.ops.optpipe.kv_write) for node in graph.nodes):
            return
        ids = next(node for node in graph.nodes if node.op == "placeholder")
        if rank(ids) != 1:
            cx.missed(ids, "the graph still has a batch dimension; run drop-batch first")
            return
        slots = cx.placeholder("slot_mapping", cx.empty(shape(ids)[0], dtype=torch.int64))
        blocks = shape_of_new_cache(cx)
        written: set[tuple[fx.Node, fx.Node]] = set()
        for attention in attentions:
            k, v = args_of(attention)[1:3]
            if (k, v) in written:
                cx.missed(attention, "its keys and values are in the cache of an earlier layer")
                continue
            number = len(written)
            written.add((k, v))
            caches = [
                cx.placeholder(
                    f"{kind}_cache.{number}", cx.empty(blocks, self.block, *shape(of)[1:]), cache=True
                )
                for kind, of in (("k", k), ("v", v))
            ]
            with graph.inserting_before(attention):
                write = cx.call(torch.ops.optpipe.kv_write.default, k, v, *caches, slots)
            write.meta["path"] = attention.meta.get("path", "")
            cx.applied(attention, "kv_write")


def shape_of_new_cache(cx: PassContext) -> torch.SymInt:
    """The symbol P, the number of blocks."""
    size: Any = new_symbol_tensor(cx.gm, "P", torch.float32).shape[0]
    return size  # type: ignore[no-any-return]  # a SymInt, which torch types as int
