"""Blocks found again by what they hold.

What a block holds depends on its own tokens and on all before them, so a block is named by a chain:

    digest of block i = SHA-256(1 ‖ digest of block i - 1 ‖ its tokens, 8 bytes each)
    digest before 0   = SHA-256(0 ‖ salt)

The leading byte keeps the two kinds of message apart: without it a salt that spells a digest and a block's
tokens would start a chain in the middle of another.

**Collisions.** Tokens are not compared: two different chains with one digest would be a collision of SHA-256,
which nobody knows how to make, on purpose or by chance. (Published attacks on prefix caches used Python's
``hash`` or truncated digests.)

**Timing.** A prompt whose prefix is cached answers sooner, so whoever shares the cache can test guesses of
other people's prompts. Only chains of equal salt meet: give every group of users that may know each other's
prompts a salt that the others cannot choose.

Only full blocks of committed tokens are registered: drafts never are. Two sequences that compute the same
block at once keep their own; the first to be committed is the one that is found. (Swapping one for the other
would change the block table of a running sequence in its middle, to save memory only in that case.)
"""

from __future__ import annotations

from array import array
from hashlib import sha256

from .block_pool import BlockPool
from .request import Sequence

_ROOT, _BLOCK = b"\0", b"\1"


def root_digest(salt: bytes) -> bytes:
    """What comes before the first block of every chain with this salt."""
    return sha256(_ROOT + salt).digest()


def block_digest(before: bytes, tokens: list[int]) -> bytes:
    """The digest of a block of ``tokens`` after the block with the digest ``before``.

    Raises:
        OverflowError: a token takes more than 63 bits.
    """
    return sha256(_BLOCK + before + array("q", tokens).tobytes()).digest()


class PrefixCache:
    """Which block holds which chain, over a pool of its own.

    Attributes:
        pool: the blocks. Idle ones are those of this cache that nobody owns.
        queries: prompt tokens looked for so far.
        hits: those of them that were found.
    """

    def __init__(self, num_blocks: int, block_size: int, *, enabled: bool = True) -> None:
        self.block_size = block_size
        self.enabled = enabled
        self.pool = BlockPool(num_blocks, self._evicted)
        self.queries = 0
        self.hits = 0
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    def find(self, sequence: Sequence) -> list[int]:
        """The blocks that hold the longest cached prefix of ``sequence``, without its last token.

        That one has to run in any case: its logits are wanted. Where the logits of the whole prompt are, only
        what was handed out already may be skipped.
        """
        if not self.enabled:
            return []
        limit = len(sequence.tokens) - 1
        if sequence.prompt_rows and sequence.scored < sequence.prompt_len:
            limit = sequence.scored
        blocks = []
        for index in range(limit // self.block_size):
            block = self._block_of.get(self._digest(sequence, index))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def extends(self, sequence: Sequence, found: int) -> bool:
        """Whether :meth:`find`, which found so many blocks, may find more of ``sequence`` now."""
        return len(sequence.digests) > found and sequence.digests[found] in self._block_of

    def register(self, sequence: Sequence) -> None:
        """Make the blocks that ``sequence`` has filled with committed tokens findable."""
        if not self.enabled:
            return
        for index in range(sequence.registered, sequence.computed // self.block_size):
            digest = self._digest(sequence, index)
            sequence.registered = index + 1
            if digest not in self._block_of:
                block = sequence.blocks[index]
                self._block_of[digest] = block
                self._digest_of[block] = digest
                self.pool.keep(block)

    def clear(self) -> None:
        """Forget every block; owners keep theirs."""
        self._block_of.clear()
        self._digest_of.clear()
        self.pool.forget()

    def _digest(self, sequence: Sequence, index: int) -> bytes:
        """The digest of a full block. Each is made once: the tokens before it never change."""
        digests = sequence.digests
        if index == len(digests):
            before = digests[-1] if digests else root_digest(sequence.salt)
            begin = index * self.block_size
            digests.append(block_digest(before, sequence.tokens[begin : begin + self.block_size]))
        return digests[index]

    def _evicted(self, block: int) -> None:
        del self._block_of[self._digest_of.pop(block)]

    def check_integrity(self, owners: list[Sequence]) -> None:
        """Verify the books, the pool's too, against everyone who owns blocks."""
        self.pool.check_integrity((b for sequence in owners for b in sequence.blocks), self._digest_of)
        swapped = {digest: block for block, digest in self._digest_of.items()}
        assert swapped == self._block_of, f"{self._block_of = } is not the inverse of {self._digest_of = }"
        holds: dict[int, bytes] = {}
        for sequence in owners:
            for index, digest in enumerate(self._recompute(sequence)):
                assert digest == sequence.digests[index], f"{sequence} has a wrong digest at {index = }"
            for index, block in enumerate(sequence.blocks):
                self._check_block(sequence, index, block, holds)

    def _recompute(self, sequence: Sequence) -> list[bytes]:
        digests = [root_digest(sequence.salt)]
        for index in range(len(sequence.digests)):
            begin = index * self.block_size
            digests.append(block_digest(digests[-1], sequence.tokens[begin : begin + self.block_size]))
        return digests[1:]

    def _check_block(self, sequence: Sequence, index: int, block: int, holds: dict[int, bytes]) -> None:
        """One block of one owner: it holds what the owner computed, and it is shared only by equals."""
        known = self._digest_of.get(block)
        if index >= sequence.registered:
            assert known is None, f"{sequence}: {block = } at {index = } is findable before it is full"
            assert self.pool.owners(block) == 1, f"{sequence}: {block = } is shared before it is full"
            return
        digest = sequence.digests[index]
        assert known in (None, digest), f"{sequence}: {block = } at {index = } is known as another chain's"
        assert holds.setdefault(block, digest) == digest, f"{block = } has owners that disagree on it"
