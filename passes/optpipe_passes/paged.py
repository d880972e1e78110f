"""``paged``: attention reads keys and values from the block cache, so that sequences can be packed.

Before: optpipe.kv_write(%k, %v, %k_cache.0, %v_cache.0, …); %y = optpipe.attention(%q, %k, %v, scale=…)
After:  %y = optpipe.paged_attention(%q, %k_cache.0, %v_cache.0, %query_start, %context_lens, …)
Guards: the keys and values of the attention were written to a cache before it; anything else is an error,
        since a graph that is half paged has no meaning
Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from optpipe.errors import PassError
from optpipe.graph.nodes import args_of, is_call, path, shape
from optpipe.graph.propagate import new_symbol_tensor
from optpipe.pipeline import Pass, Stage
from optpipe.pipeline.context import PassContext

from .cache import Cache

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class Paged(Pass):
    """Attend over a block table: prefill, chunks, decoding and verification in one operation.

    Attributes:
        block: tokens a block of the cache.
    """

    name: ClassVar[str] = "paged"
    stage: ClassVar[Stage] = Stage.LOWER
    whole: ClassVar[bool] = True

    block: int = 16

    def __post_init__(self) -> None:
        Cache(block=self.block)  # refuses what no cache can have

    def required(self) -> tuple[str | Pass, ...]:
        return (Cache(block=self.block),)

    def expected(self, config: dict[str, Any]) -> int | None:
        """One attention a layer."""
        text = config.get("text_config", config)
        return next((int(text[name]) for name in LAYERS if isinstance(text.get(name), int)), None)

    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        attentions = [node for node in graph.nodes if is_call(node, torch.ops.optpipe.attention)]
        if not attentions:
            return
        caches = written_caches(graph)
        tables = step_inputs(cx)
        for node in attentions:
            pair = caches.get(args_of(node)[1:3])
            if pair is None:
                raise PassError(
                    f"paged found keys and values of {path(node) or 'the model'} that no cache holds"
                )
            self._check_block(pair[0])
            cx.replace(node, lambda: paged_attention(cx, node, pair, tables))  # noqa: B023

    def _check_block(self, cache: fx.Node) -> None:
        block = shape(cache)[1]
        if block != self.block:
            raise PassError(f"paged{{block={self.block}}} meets a cache with blocks of {block} tokens")


def written_caches(graph: fx.Graph) -> dict[tuple[Any, ...], tuple[fx.Node, fx.Node]]:
    """(keys, values) → the caches they are written to."""
    writes = [node for node in graph.nodes if is_call(node, torch.ops.optpipe.kv_write)]
    return {tuple(args_of(node)[:2]): tuple(args_of(node)[2:4]) for node in writes}


def step_inputs(cx: PassContext) -> tuple[fx.Node, fx.Node, fx.Node]:
    """query_start [B + 1], context_lens [B], block_tables [B, M], all int32."""
    sequences: Any = new_symbol_tensor(cx.gm, "B", torch.int32).shape[0]
    width: Any = new_symbol_tensor(cx.gm, "M", torch.int32).shape[0]
    return (
        cx.placeholder("query_start", cx.empty(sequences + 1, dtype=torch.int32)),
        cx.placeholder("context_lens", cx.empty(sequences, dtype=torch.int32)),
        cx.placeholder("block_tables", cx.empty(sequences, width, dtype=torch.int32)),
    )


def paged_attention(
    cx: PassContext, node: fx.Node, caches: tuple[fx.Node, fx.Node], tables: tuple[fx.Node, ...]
) -> fx.Node:
    """The op that takes over; sinks, slopes and options are carried as they are."""
    extra = {name: node.kwargs[name] for name in ("sinks", "alibi") if node.kwargs.get(name) is not None}
    extra |= dict(zip(("sinks", "alibi"), args_of(node)[4:6], strict=False))
    options = {name: given for name, given in node.kwargs.items() if name not in ("mask", "sinks", "alibi")}
    given = {name: operand for name, operand in extra.items() if operand is not None}
    target = torch.ops.optpipe.paged_attention.default
    return cx.call(target, args_of(node)[0], *caches, *tables, **given, **options)
