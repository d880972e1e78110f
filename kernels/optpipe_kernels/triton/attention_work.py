"""Who computes which part of a step's attention: lists made on the host, read by the kernels.

A step packs B sequences. Those with so few new tokens that their rows fit one decode tile (one token, or the
draft of a verification) are cut into spans of keys, an item a span; the others into blocks of queries. The
lists are int32 arrays that travel with the step's other inputs. Those of the decode kernel may be longer than
what they hold, since it reads how many items there are. Layers of another window or chunk need other lists.

    item_start     [B + 1]   sequence b owns items item_start[b] to item_start[b + 1]; none if not decoded
    item_sequence  [≥ items] the sequence of each item; its span is the first one seen plus its place
    block_sequence [blocks]  the sequence of each block of queries, the longest walks first
    block_token    [blocks]  the block's first token within its sequence's new tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from optpipe.errors import KernelError

from .tiles import Tile, tile

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Shape:
    """What is static about one attention layer.

    Attributes:
        heads: query heads, H.
        kv_heads: H_kv.
        head_dim: width of queries and keys, D.
        value_dim: width of values, Dv.
        kv_bytes: bytes a cached number.
        window: tokens seen, the token itself included.
        chunk: tokens see only their own multiple of this.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    kv_bytes: int = 2
    window: int | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise KernelError(f"attention needs H divisible by H_kv, got {self.heads} and {self.kv_heads}")

    @property
    def group(self) -> int:
        """Query heads a KV head."""
        return self.heads // self.kv_heads

    def first_key(self, position: int) -> int:
        """The oldest key that a query at ``position`` sees."""
        oldest = 0
        if self.window is not None:
            oldest = max(oldest, position - self.window + 1)
        if self.chunk is not None:
            oldest = max(oldest, position // self.chunk * self.chunk)
        return oldest


@dataclass(frozen=True, slots=True)
class Tiles:
    """The two kernels' tiles for one shape; both walk keys in the same BLOCK_N and SPAN.

    Attributes:
        decode, prefill: rows of the table.
        group: query heads a KV head.
        native: the chip converts float8 itself.
    """

    decode: Tile
    prefill: Tile
    group: int
    native: bool

    @property
    def pack(self) -> int:
        """Heads of a group that one program holds."""
        return min(self.group, self.decode.constants["BLOCK_M"])

    @property
    def decode_tokens(self) -> int:
        """New tokens of a sequence that one decode program holds."""
        return self.decode.constants["BLOCK_M"] // self.pack

    @property
    def prefill_tokens(self) -> int:
        """New tokens of a sequence in one block of queries."""
        return self.prefill.constants["BLOCK_M"] // self.pack

    @property
    def span(self) -> int:
        """Keys a span."""
        return self.decode.constants["SPAN"]

    @property
    def head_blocks(self) -> int:
        """Programs a KV head."""
        return -(-self.group // self.pack)


def attention_tiles(shape: Shape, key: str, *, batch_invariant: bool = True) -> Tiles:
    """The table's tiles for a layer on a device."""
    bucket = {
        "head_dim": shape.head_dim, "kv_bytes": shape.kv_bytes, "invariant": int(batch_invariant),
    }  # fmt: skip
    decode, prefill = (tile(kernel, key, **bucket) for kernel in ("paged_decode", "paged_prefill"))
    made = Tiles(decode, prefill, shape.group, native=not key.startswith(("sm_80", "sm_86")))
    for name in ("BLOCK_N", "SPAN"):
        ours, theirs = made.decode.constants[name], made.prefill.constants[name]
        assert not batch_invariant or ours == theirs, f"{name}: {ours = } must equal {theirs = } on {key}"
    return made


@dataclass(frozen=True, slots=True)
class Work:
    """A step's lists, as numpy arrays on the host or as tensors on a device.

    Attributes:
        item_start, item_sequence, block_sequence, block_token: int32, as drawn above.
        tokens: rows of q that belong to a sequence, query_start[B].
        most_tokens: new tokens of the decoded sequence that has most; 0 when none is decoded.
        most_items: spans of the decoded sequence that has most.
    """

    item_start: Any
    item_sequence: Any
    block_sequence: Any
    block_token: Any
    tokens: int
    most_tokens: int
    most_items: int

    def to(self, device: torch.device) -> Work:
        """The same lists as tensors on a device; each is its own copy, for callers that do not stage."""
        arrays = ("item_start", "item_sequence", "block_sequence", "block_token")
        moved: dict[str, Any] = {name: torch.as_tensor(getattr(self, name)).to(device) for name in arrays}
        return replace(self, **moved)


def plan_work(query_start: Sequence[int], context_lens: Sequence[int], shape: Shape, tiles: Tiles) -> Work:
    """The lists of one step, on the host.

    Args:
        query_start: [B + 1].
        context_lens: [B].
        shape: heads, window and chunk.
        tiles: of ``attention_tiles``.
    """
    starts, sequences, blocks, most_tokens = [0], [], [], 0
    for b, context in enumerate(context_lens):
        tokens = query_start[b + 1] - query_start[b]
        if 0 < tokens <= tiles.decode_tokens:
            first = shape.first_key(context - tokens) // tiles.span
            sequences += [b] * ((context - 1) // tiles.span - first + 1)
            most_tokens = max(most_tokens, tokens)
        else:
            blocks += _query_blocks(b, context, tokens, shape, tiles.prefill_tokens)
        starts.append(len(sequences))
    blocks.sort(reverse=True)  # the longest first: a late long one would run alone
    return Work(
        _int32(starts), _int32(sequences),
        _int32([sequence for _, sequence, _ in blocks]), _int32([token for _, _, token in blocks]),
        tokens=query_start[-1],
        most_tokens=most_tokens,
        most_items=max((end - begin for begin, end in pairwise(starts)), default=0),
    )  # fmt: skip


def _query_blocks(
    sequence: int, context: int, tokens: int, shape: Shape, block: int
) -> list[tuple[int, int, int]]:
    """(keys walked, sequence, first token) of each block of queries."""
    found = []
    for token in range(0, tokens, block):
        position = context - tokens + token
        last = min(position + block, context)
        found.append((last - shape.first_key(position), sequence, token))
    return found


def _int32(values: Sequence[int]) -> NDArray[np.int32]:
    return np.asarray(values, dtype=np.int32)
