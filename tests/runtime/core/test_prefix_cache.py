from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from optpipe_runtime.core.block_tables import BlockTables
from optpipe_runtime.core.prefix_cache import block_digest, root_digest
from optpipe_runtime.core.request import Sequence, Status

from .machines import run_machine

SIZE = 4


def tables(num_blocks: int = 16, *, prefix_caching: bool = True) -> BlockTables:
    return BlockTables(num_blocks, SIZE, prefix_caching=prefix_caching)


def sequence(tokens: list[int], *, number: int = 0, salt: bytes = b"", prompt_rows: bool = False) -> Sequence:
    return Sequence(number, tokens, max_len=100, salt=salt, prompt_rows=prompt_rows)


def compute(where: BlockTables, one: Sequence, count: int | None = None) -> Sequence:
    """As if ``count`` of its tokens had been run and committed."""
    one.status = Status.RUNNING
    count = len(one.tokens) if count is None else count
    where.extend(one, count)
    where.enter(one, count)
    return one


@pytest.mark.parametrize(
    ("tokens", "hit"),
    [
        (range(9), 8),  # both blocks and a token to run
        (range(8), 4),  # all of it is cached; the last token has to run, so its block is computed again
        (range(5), 4),
        (range(4), 0),
        ([0, 1, 2, 3, 99, 5, 6, 7, 8], 4),  # differs in its second block
        ([99, 1, 2, 3, 4, 5, 6, 7, 8], 0),  # differs in its first: the second is another chain's
    ],
)
def test_finds_the_longest_prefix_of_full_blocks(tokens: list[int], hit: int) -> None:
    where = tables()
    first = compute(where, sequence(list(range(11))))
    assert where.cache.find(sequence(list(tokens))) == first.blocks[: hit // SIZE]


def test_a_block_is_found_only_once_it_is_full_and_committed() -> None:
    where = tables()
    first = sequence(list(range(9)))
    compute(where, first, 3)
    where.extend(first, 9)  # slots of a step that is not committed
    assert where.cache.find(sequence(list(range(9)))) == []
    where.enter(first, 7)
    assert where.cache.find(sequence(list(range(9)))) == first.blocks[:1]


def test_the_same_tokens_at_another_place_are_another_block() -> None:
    where = tables()
    compute(where, sequence([1, 2, 3, 4, 1, 2, 3, 4]))
    assert len(where.cache.find(sequence([1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 5]))) == 2


def test_salts_do_not_meet() -> None:
    where = tables()
    compute(where, sequence(list(range(9)), salt=b"one"))
    for salt in (b"", b"two", b"on", b"one "):
        assert where.cache.find(sequence(list(range(9)), salt=salt)) == []
    assert len(where.cache.find(sequence(list(range(9)), salt=b"one"))) == 2


def test_a_salt_cannot_start_in_the_middle_of_another_chain() -> None:
    tokens = list(range(SIZE))
    inside = block_digest(root_digest(b"victim"), tokens)
    spelt = root_digest(b"victim") + b"".join(token.to_bytes(8, "little") for token in tokens)
    assert root_digest(spelt) != inside
    assert root_digest(b"\1" + spelt) != inside
    assert root_digest(spelt[1:]) != inside


def test_digests_tell_tokens_apart_whatever_their_size() -> None:
    blocks = [[0, 1], [1, 0], [256, 0], [0, 256], [1, 256], [65537, 0], [1 << 32, 1], [-1, 0]]
    assert len({block_digest(b"", tokens) for tokens in blocks}) == len(blocks)


def test_two_that_compute_the_same_block_keep_their_own_and_the_first_is_found() -> None:
    where = tables()
    first = compute(where, sequence(list(range(9)), number=1))
    second = compute(where, sequence(list(range(9)), number=2))
    assert not set(first.blocks) & set(second.blocks)
    where.cache.check_integrity([first, second])
    where.let_go(first)
    where.let_go(second)
    where.cache.check_integrity([])
    assert where.pool.idle == 2  # the second's were never findable
    assert len(where.cache.find(sequence(list(range(9))))) == 2


def test_the_tail_of_a_chain_is_evicted_before_its_head() -> None:
    where = tables(num_blocks=4)
    where.let_go(compute(where, sequence(list(range(16)))))
    for cached in (3, 2, 1, 0):
        where.extend(sequence([0]), 1)
        assert len(where.cache.find(sequence([*range(16), 0]))) == cached


def test_a_block_that_was_found_is_owned_and_not_evicted() -> None:
    where = tables(num_blocks=2)
    first = compute(where, sequence(list(range(4))))
    (block,) = first.blocks
    second = sequence(list(range(5)))
    where.let_go(first)
    where.adopt(second, where.cache.find(second))
    assert (second.blocks, second.computed, second.registered) == ([block], 4, 1)
    other = where.pool.allocate(1)
    assert other is not None and block not in other
    assert where.pool.allocate(1) is None


def test_who_wants_the_logits_of_the_prompt_skips_only_what_has_them() -> None:
    where = tables()
    compute(where, sequence(list(range(16))))
    scoring = sequence(list(range(16)), prompt_rows=True)
    assert where.cache.find(scoring) == []
    scoring.scored = 9
    assert len(where.cache.find(scoring)) == 2
    scoring.scored = 16
    assert len(where.cache.find(scoring)) == 3
    where.let_go(compute(where, sequence(list(range(50, 58)), prompt_rows=True)))
    assert len(where.cache.find(sequence(list(range(50, 59))))) == 2  # what it computed is found by others


def test_switched_off_it_finds_nothing() -> None:
    where = tables(prefix_caching=False)
    where.let_go(compute(where, sequence(list(range(9)))))
    assert where.cache.find(sequence(list(range(9)))) == []
    assert where.pool.idle == 0


def test_clearing_forgets_even_what_is_owned() -> None:
    where = tables()
    first = compute(where, sequence(list(range(9))))
    where.cache.clear()
    assert where.cache.find(sequence(list(range(9)))) == []
    where.cache.check_integrity([first])
    where.let_go(first)
    assert where.pool.idle == 0
    again = compute(where, sequence(list(range(9)), number=2))
    assert where.cache.find(sequence(list(range(9)))) == again.blocks[:2]


def test_each_block_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def counting(before: bytes, tokens: list[int]) -> bytes:
        hashed.append(len(tokens))
        return block_digest(before, tokens)

    monkeypatch.setattr("optpipe_runtime.core.prefix_cache.block_digest", counting)
    where = tables()
    one = sequence(list(range(16)))
    for count in range(1, 17):
        compute(where, one, count)
        where.cache.find(one)
    where.let_go(one)
    compute(where, one)
    assert hashed == [SIZE] * 4


@pytest.mark.parametrize("damage", ["digest", "tokens", "shared", "unfull", "table"])
def test_the_check_finds_damaged_books(damage: str) -> None:
    where = tables()
    one = compute(where, sequence(list(range(7)), number=1))
    two = compute(where, sequence(list(range(50, 57)), number=2))
    where.cache.check_integrity([one, two])
    if damage == "digest":
        one.digests[0] = b"?"
    elif damage == "tokens":
        one.tokens[0] = 99
    elif damage == "shared":
        where.pool.release(two.blocks[:1])
        two.blocks[0] = one.blocks[0]
        where.pool.retain(one.blocks[:1])
    elif damage == "unfull":
        where.pool.release(two.blocks[1:])
        two.blocks[1] = one.blocks[1]
        where.pool.retain(one.blocks[1:])
    else:
        where.cache._block_of[b"?"] = one.blocks[0]
    with pytest.raises(AssertionError):
        where.cache.check_integrity([one, two])


class CacheMachine(RuleBasedStateMachine):
    """Against a model that keeps whole prefixes as dictionary keys instead of digests."""

    @initialize(num_blocks=st.integers(2, 12))
    def begin(self, num_blocks: int) -> None:
        self.tables = tables(num_blocks)
        self.block_of: dict[tuple[bytes, tuple[int, ...]], int] = {}
        self.live: list[Sequence] = []
        self.ids = 0

    def forget_reused(self, blocks: list[int]) -> None:
        for key, block in list(self.block_of.items()):
            if block in blocks:
                del self.block_of[key]

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14), salt=st.sampled_from([b"", b"salt"]))
    def start(self, tokens: list[int], salt: bytes) -> None:
        self.ids += 1
        one = sequence(tokens, number=self.ids, salt=salt)
        expected: list[int] = []
        for end in range(SIZE, len(tokens), SIZE):
            if (salt, tuple(tokens[:end])) not in self.block_of:
                break
            expected.append(self.block_of[salt, tuple(tokens[:end])])
        found = self.tables.cache.find(one)
        assert found == expected
        one.status = Status.RUNNING
        self.tables.adopt(one, found)
        self.live.append(one)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), count=st.integers(1, 6))
    def grow(self, data: st.DataObject, count: int) -> None:
        one = data.draw(st.sampled_from(self.live))
        end = min(one.computed + count, len(one.tokens), one.computed + self.tables.room(one, one.computed))
        held = len(one.blocks)
        self.tables.extend(one, end)
        self.forget_reused(one.blocks[held:])
        for index in range(one.computed // SIZE, end // SIZE):
            key = one.salt, tuple(one.tokens[: (index + 1) * SIZE])
            self.block_of.setdefault(key, one.blocks[index])
        self.tables.enter(one, end)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=5))
    def append(self, data: st.DataObject, tokens: list[int]) -> None:
        data.draw(st.sampled_from(self.live)).tokens.extend(tokens)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.live))
        self.live.remove(one)
        self.tables.let_go(one)

    @rule(chance=st.integers(0, 9))
    def clear(self, chance: int) -> None:
        if chance == 0:
            self.tables.cache.clear()
            self.block_of.clear()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "tables"):
            return
        cache = self.tables.cache
        cache.check_integrity(self.live)
        assert sorted(cache._digest_of) == sorted(self.block_of.values())


def test_any_use_keeps_the_books() -> None:
    run_machine(CacheMachine, steps=20_000)
