from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from optpipe_runtime.core.block_pool import BlockPool

from .machines import run_machine


def test_hands_out_each_block_once_and_then_none() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    assert blocks is not None and len(set(blocks)) == 2
    assert pool.allocate(2) is None
    assert pool.available == 1


def test_a_block_is_free_when_its_last_owner_lets_go() -> None:
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    assert blocks == [0]
    pool.retain(blocks)
    pool.release(blocks)
    assert pool.available == 0
    pool.release(blocks)
    assert pool.available == 1


def test_releasing_what_nobody_owns_is_an_error() -> None:
    with pytest.raises(AssertionError, match="without an owner"):
        BlockPool(1).release([0])


def test_evicts_the_least_recently_used_and_only_after_the_blank_ones() -> None:
    evicted: list[int] = []
    pool = BlockPool(4, evicted.append)
    first, second, third, blank = pool.allocate(4) or []
    for block in (first, second, third):
        pool.keep(block)
    pool.release([second, third, first, blank])
    pool.retain([second])  # used again,
    pool.release([second])  # so now it is the most recent
    assert pool.allocate(1) == [blank] and not evicted
    assert pool.allocate(3) == evicted == [third, first, second]


def test_forgetting_makes_idle_blocks_blank_and_used_ones_blank_later() -> None:
    evicted: list[int] = []
    pool = BlockPool(2, evicted.append)
    idle, used = pool.allocate(2) or []
    pool.keep(idle)
    pool.keep(used)
    pool.release([idle])
    pool.forget()
    pool.release([used])
    assert (pool.idle, pool.available) == (0, 2)
    pool.allocate(2)
    assert not evicted


@pytest.mark.parametrize("damage", ["count", "lost", "twice", "mark"])
def test_the_check_finds_damaged_books(damage: str) -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1) or []
    pool.check_integrity([block], [])
    if damage == "count":
        pool._owners[block] = 2
    elif damage == "lost":
        pool._blank.pop()
    elif damage == "twice":
        pool._blank.append(pool._blank[0])
    else:
        pool._kept[block] = 1
    with pytest.raises(AssertionError):
        pool.check_integrity([block], [])


class PoolMachine(RuleBasedStateMachine):
    """Against a model that keeps a list of owners for each block, and the idle ones in a list."""

    size = 8

    def __init__(self) -> None:
        super().__init__()
        self.evicted: list[int] = []
        self.pool = BlockPool(self.size, self.evicted.append)
        self.owned: list[int] = []  # a block with two owners is in it twice
        self.kept: set[int] = set()
        self.idle: list[int] = []

    @rule(count=st.integers(0, 5))
    def allocate(self, count: int) -> None:
        free = self.size - len(set(self.owned))
        blank = free - len(self.idle)
        self.evicted.clear()
        blocks = self.pool.allocate(count)
        if count > free:
            assert blocks is None and not self.evicted
            return
        assert blocks is not None and len(set(blocks)) == count and not set(blocks) & set(self.owned)
        gone = max(count - blank, 0)
        assert self.evicted == self.idle[:gone]
        self.kept -= set(self.idle[:gone])
        del self.idle[:gone]
        self.owned += blocks

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted(set(self.owned))), unique=True, max_size=4))
        self.pool.release(blocks)
        for block in blocks:
            self.owned.remove(block)
            if block in self.kept and block not in self.owned:
                self.idle.append(block)

    @precondition(lambda self: self.owned or self.idle)
    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted({*self.owned, *self.idle})))
        self.pool.retain([block])
        self.owned.append(block)
        if block in self.idle:
            self.idle.remove(block)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(set(self.owned))))
        self.pool.keep(block)
        self.kept.add(block)

    @rule(chance=st.integers(0, 9))
    def forget(self, chance: int) -> None:
        if chance == 0:
            self.pool.forget()
            self.kept.clear()
            self.idle.clear()

    @invariant()
    def agrees(self) -> None:
        self.pool.check_integrity(self.owned, self.kept)
        assert self.pool.idle == len(self.idle)
        assert self.pool.available == self.size - len(set(self.owned))


def test_any_use_keeps_the_books() -> None:
    run_machine(PoolMachine, steps=20_000)
