"""The blocks of the key-value cache, counted: who owns how many of which.

A block is in one of three states, and the pool keeps a list of each but the first:

    used   owned by one sequence or more (its count says by how many)
    idle   owned by nobody, but what it holds may be wanted again; least recently used first
    blank  owned by nobody, and holds nothing
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable


class BlockPool:
    """Hands out blocks: blank ones first, then the idle one that was let go longest ago.

    Attributes:
        num_blocks: blocks in all, named 0 to ``num_blocks - 1``.
    """

    def __init__(self, num_blocks: int, evicted: Callable[[int], None] = lambda block: None) -> None:
        """``evicted`` is told of every idle block that is handed out: what it held is gone."""
        self.num_blocks = num_blocks
        self._evicted = evicted
        self._owners = [0] * num_blocks
        self._kept = bytearray(num_blocks)  # 1: idle, not blank, once nobody owns it
        self._blank = list(range(num_blocks - 1, -1, -1))  # a stack
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that nobody owns."""
        return len(self._blank) + len(self._idle)

    @property
    def idle(self) -> int:
        """Blocks that nobody owns and whose contents are kept."""
        return len(self._idle)

    def owners(self, block: int) -> int:
        """How many own this block."""
        return self._owners[block]

    def allocate(self, count: int) -> list[int] | None:
        """``count`` blocks with one owner each, or None (and nothing changes) when there are not so many."""
        if count > len(self._blank) + len(self._idle):
            return None
        blocks = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        for block in blocks:
            self._owners[block] = 1
        return blocks

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        self._kept[block] = 0
        self._evicted(block)
        return block

    def keep(self, block: int) -> None:
        """Mark what a used block holds as worth keeping after its last owner let go."""
        assert self._owners[block], f"{block = } is kept without an owner"
        self._kept[block] = 1

    def retain(self, blocks: Iterable[int]) -> None:
        """One owner more for each of ``blocks``, which are used or idle."""
        for block in blocks:
            if not self._owners[block]:
                del self._idle[block]
            self._owners[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One owner less for each; of those let go, the first are the first to be evicted."""
        owners = self._owners
        for block in blocks:
            assert owners[block] > 0, f"{block = } is released without an owner"
            owners[block] -= 1
            if owners[block]:
                continue
            if self._kept[block]:
                self._idle[block] = None
            else:
                self._blank.append(block)

    def forget(self) -> None:
        """Nothing that any block holds is worth keeping any more."""
        self._kept = bytearray(self.num_blocks)
        self._blank.extend(self._idle)
        self._idle.clear()

    def check_integrity(self, owned: Iterable[int], kept: Iterable[int]) -> None:
        """Verify the books.

        Args:
            owned: every block of every owner; a block with two owners comes twice.
            kept: the blocks whose contents are worth keeping.
        """
        counts = Counter(owned)
        blank = set(self._blank)
        assert len(blank) == len(self._blank), f"a block is blank twice: {self._blank = }"
        assert not blank & self._idle.keys(), f"blank and idle: {blank & self._idle.keys()}"
        marked = {block for block, mark in enumerate(self._kept) if mark}
        assert marked == set(kept), f"{marked = }, but the cache knows {set(kept)}"
        for block, owners in enumerate(self._owners):
            assert owners == counts[block], f"{block = } counts {owners = }, has {counts[block]}"
            state = (block in blank, block in self._idle)
            expected = (not owners and block not in marked, not owners and block in marked)
            assert state == expected, f"{block = } with {owners = } is (blank, idle) = {state}"
        assert counts.keys() <= set(range(self.num_blocks)), f"unknown blocks are owned: {sorted(counts)}"
