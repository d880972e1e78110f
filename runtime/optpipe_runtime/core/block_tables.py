"""The blocks of every running sequence: given as it grows, taken back as it shrinks or stops."""

from __future__ import annotations

from .prefix_cache import PrefixCache
from .request import Sequence


class BlockTables:
    """Writes ``blocks``, ``computed`` and ``registered`` of the sequences, over one pool.

    Attributes:
        cache: finds blocks again by what they hold.
        pool: the blocks.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool) -> None:
        self.block_size = block_size
        self.cache = PrefixCache(num_blocks, block_size, enabled=prefix_caching)
        self.pool = self.cache.pool

    def count(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-tokens // self.block_size)

    def owed(self, sequence: Sequence) -> int:
        """Blocks that it still needs to run all its tokens."""
        return -(-len(sequence.tokens) // self.block_size) - len(sequence.blocks)

    def room(self, sequence: Sequence, end: int) -> int:
        """Slots after position ``end`` that its blocks and all that nobody owns would give it."""
        return (len(sequence.blocks) + self.pool.available) * self.block_size - end

    def adopt(self, sequence: Sequence, found: list[int]) -> None:
        """Start it on blocks that already hold its first tokens."""
        self.pool.retain(found)
        sequence.blocks += found
        sequence.registered = len(found)
        sequence.computed = len(found) * self.block_size

    def extend(self, sequence: Sequence, end: int) -> None:
        """Give it blocks for ``end`` tokens; there must be enough."""
        blocks = self.pool.allocate(self.count(end) - len(sequence.blocks))
        assert blocks is not None, f"{sequence} was promised blocks for {end} tokens"
        sequence.blocks += blocks

    def enter(self, sequence: Sequence, computed: int) -> None:
        """So many of its tokens are computed now; blocks that became full can be found."""
        sequence.computed = computed
        if computed // self.block_size > sequence.registered:
            self.cache.register(sequence)

    def trim(self, sequence: Sequence, end: int | None = None) -> None:
        """Take away the blocks beyond position ``end``; beyond what is computed when None."""
        count = self.count(sequence.computed if end is None else end)
        self.pool.release(reversed(sequence.blocks[count:]))
        del sequence.blocks[count:]

    def let_go(self, sequence: Sequence) -> None:
        """Take all its blocks, the last first: a chain is found from its head, which is evicted last."""
        self.pool.release(reversed(sequence.blocks))
        sequence.blocks.clear()
        sequence.computed = sequence.registered = 0
