"""What fits on the machine: decided, checked and printed before anything is allocated.

free memory = weights still to be read + workspace of the largest step + KV blocks + what stays free

A draft model has the same parts, and its blocks take a quarter of the bytes that the model's own take.
"""

from __future__ import annotations

from dataclasses import dataclass

from optpipe.cli.output import human_bytes
from optpipe.errors import CapacityError
from optpipe.machine import free_memory
from optpipe.targets.protocol import Executor, MemoryNeeds

from .config import EngineConfig

_LONGEST = 1 << 17  # tokens of a sequence, where neither model nor config says
DRAFT_TOKENS = 512  # of a step in which a draft model catches up
_DRAFT_CACHE = 0.25  # of the bytes of the model's own cache


@dataclass(frozen=True, slots=True)
class DraftMemory:
    """What a draft model takes; sizes in bytes.

    Attributes:
        weights, workspace, block_bytes, num_blocks: as of :class:`MemoryPlan`.
    """

    weights: int
    workspace: int
    block_bytes: int
    num_blocks: int

    @property
    def cache(self) -> int:
        """Of all blocks."""
        return self.num_blocks * self.block_bytes

    def __str__(self) -> str:
        return (
            f"draft model: weights {human_bytes(self.weights)}, workspace {human_bytes(self.workspace)}, "
            f"KV cache {human_bytes(self.cache)}"
        )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How memory is divided; all sizes in bytes.

    Attributes:
        free: what there is.
        weights: of all weights, also of those that are in memory already.
        workspace: what the largest step takes beside them.
        block_bytes: of one cache block over all layers.
        num_blocks: of the cache.
        block_size: tokens a block.
        kv_dtype: how the cache stores numbers.
        draft: what the draft model takes, where there is one.
    """

    free: int
    weights: int
    workspace: int
    block_bytes: int
    num_blocks: int
    block_size: int
    kv_dtype: str
    draft: DraftMemory | None = None

    @property
    def cache(self) -> int:
        """Of all blocks."""
        return self.num_blocks * self.block_bytes

    def __str__(self) -> str:
        tokens = self.num_blocks * self.block_size
        return (
            f"memory: weights {human_bytes(self.weights)}, workspace {human_bytes(self.workspace)}, "
            f"KV cache {human_bytes(self.cache)} ({self.num_blocks} blocks of {self.block_size} tokens "
            f"in {self.kv_dtype}, {tokens} tokens){'' if self.draft is None else f', {self.draft}'}, "
            f"of {human_bytes(self.free)} free"
        )


def plan_memory(
    executor: Executor,
    config: EngineConfig,
    *,
    rows: int,
    context: int | None,
    free: int | None = None,
    draft: Executor | None = None,
) -> MemoryPlan:
    """Divide the memory, or say why it cannot be done.

    The cache is never larger than ``max_num_seqs`` sequences of the full context could use.

    Args:
        rows: logit rows of the largest step.
        context: positions that the model takes, or None where it does not say.
        free: bytes, instead of asking the executor and the machine.
        draft: of a draft model, on the same device.

    Raises:
        CapacityError: it does not fit, or no block does; the sentence has the figures.
    """
    spec = executor.cache_spec
    assert spec is not None, "only a paged artifact has a cache"
    kv_dtype = _kv_dtype(executor, config.kv_dtype)
    needs = executor.memory(tokens=config.max_num_batched_tokens, rows=rows)
    there = next(it for it in (free, needs.free, free_memory()) if it is not None)
    size = executor.block_bytes(kv_dtype)
    room = there - (needs.weights - needs.loaded) - needs.workspace
    aside = None if draft is None else draft.memory(tokens=DRAFT_TOKENS, rows=config.max_num_seqs)
    if aside is not None:
        room -= aside.weights - aside.loaded + aside.workspace
    blocks = _blocks(config, max(room, 0), size if draft is None else size * (1 + _DRAFT_CACHE))
    longest = min((it for it in (context, config.max_context) if it is not None), default=_LONGEST)
    if config.num_blocks is None:
        each = -(-longest // spec.block_size) + 1
        each = each if spec.sequence_blocks is None else min(each, spec.sequence_blocks)
        blocks = min(blocks, config.max_num_seqs * each)
    beside = _draft_memory(draft, aside, blocks * size)
    plan = MemoryPlan(there, needs.weights, needs.workspace, size, blocks, spec.block_size, kv_dtype, beside)
    if blocks < 1 or plan.cache + (0 if beside is None else beside.cache) > room:
        raise CapacityError(
            f"The model does not fit this machine: {plan}, and one block takes {human_bytes(size)}.",
            hint="give the cache less with --kv-memory, take a smaller token budget, or a smaller model",
        )
    return plan


def _blocks(config: EngineConfig, room: int, size: float) -> int:
    """Blocks of ``size`` bytes; a draft model's share of a block is in it."""
    if config.num_blocks is not None:
        return config.num_blocks
    wanted = int(config.kv_memory * room) if isinstance(config.kv_memory, float) else config.kv_memory
    return int(wanted // size)


def _draft_memory(draft: Executor | None, needs: MemoryNeeds | None, cache: int) -> DraftMemory | None:
    if draft is None or needs is None:
        return None
    size = 0 if draft.cache_spec is None else draft.block_bytes()
    blocks = max(1, int(_DRAFT_CACHE * cache) // size) if size else 0
    return DraftMemory(needs.weights, needs.workspace, size, blocks)


_KV_ALIASES = {"fp8": "f8", "int8": "i8"}  # as other servers name them


def _kv_dtype(executor: Executor, wanted: str | None) -> str:
    names = executor.kv_dtypes
    wanted = None if wanted is None else _KV_ALIASES.get(wanted, wanted)
    if wanted is not None and wanted not in names:
        raise CapacityError(
            f"The target cannot keep its cache as '{wanted}'.", hint=f"it has {', '.join(names)}"
        )
    return names[0] if wanted is None else wanted
