"""What fits on the machine: decided, checked and printed before anything is allocated.

free memory = weights still to be read + workspace of the largest step + KV blocks + what stays free
"""

from __future__ import annotations

from dataclasses import dataclass

from optpipe.cli.output import human_bytes
from optpipe.errors import CapacityError
from optpipe.machine import free_memory
from optpipe.targets.protocol import Executor

from .config import EngineConfig

_LONGEST = 1 << 17  # tokens of a sequence, where neither model nor config says


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
    """

    free: int
    weights: int
    workspace: int
    block_bytes: int
    num_blocks: int
    block_size: int
    kv_dtype: str

    @property
    def cache(self) -> int:
        """Of all blocks."""
        return self.num_blocks * self.block_bytes

    def __str__(self) -> str:
        tokens = self.num_blocks * self.block_size
        return (
            f"memory: weights {human_bytes(self.weights)}, workspace {human_bytes(self.workspace)}, "
            f"KV cache {human_bytes(self.cache)} ({self.num_blocks} blocks of {self.block_size} tokens "
            f"in {self.kv_dtype}, {tokens} tokens), of {human_bytes(self.free)} free"
        )


def plan_memory(
    executor: Executor, config: EngineConfig, *, rows: int, context: int | None, free: int | None = None
) -> MemoryPlan:
    """Divide the memory, or say why it cannot be done.

    The cache is never larger than ``max_num_seqs`` sequences of the full context could use.

    Args:
        rows: logit rows of the largest step.
        context: positions that the model takes, or None where it does not say.
        free: bytes, instead of asking the executor and the machine.

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
    blocks = _blocks(config, max(room, 0), size)
    longest = min((it for it in (context, config.max_context) if it is not None), default=_LONGEST)
    if config.num_blocks is None:
        blocks = min(blocks, config.max_num_seqs * (-(-longest // spec.block_size) + 1))
    plan = MemoryPlan(there, needs.weights, needs.workspace, size, blocks, spec.block_size, kv_dtype)
    if blocks < 1 or plan.cache > room:
        raise CapacityError(
            f"The model does not fit this machine: {plan}, and one block takes {human_bytes(size)}.",
            hint="give the cache less with --kv-memory, take a smaller token budget, or a smaller model",
        )
    return plan


def _blocks(config: EngineConfig, room: int, size: int) -> int:
    if config.num_blocks is not None:
        return config.num_blocks
    wanted = int(config.kv_memory * room) if isinstance(config.kv_memory, float) else config.kv_memory
    return wanted // size


def _kv_dtype(executor: Executor, wanted: str | None) -> str:
    names = executor.kv_dtypes
    if wanted is not None and wanted not in names:
        raise CapacityError(
            f"The target cannot keep its cache as '{wanted}'.", hint=f"it has {', '.join(names)}"
        )
    return names[0] if wanted is None else wanted
