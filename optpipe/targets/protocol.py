"""What every target's executor offers to whoever serves it. Imports no torch.

T tokens this step · B sequences · R logit rows · M blocks a sequence · P blocks in all
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class CacheSpec:
    """The key-value cache that an artifact needs.

    Attributes:
        block_size: tokens a block.
        layers: for every cache (keys' heads, keys' width, values' width).
        sequence_blocks: blocks that one sequence may have at most; None for any number.
    """

    block_size: int
    layers: tuple[tuple[int, int, int], ...]
    sequence_blocks: int | None = None

    def block_bytes(self, itemsize: int = 4) -> int:
        """Bytes that one block takes over all layers, at ``itemsize`` bytes a number."""
        return self.block_size * itemsize * sum(heads * (k + v) for heads, k, v in self.layers)


@dataclass(frozen=True)
class StepInputs:
    """One step of work: some tokens of some sequences, packed back to back.

    Attributes:
        token_ids: [T] int64. Where the executor ``feeds_tokens``, −1 − r stands for the token that row r of
            the step submitted before this one gave: its most likely, or the one that was drawn.
        positions: [T] int64, each token's place in its sequence.
        slot_mapping: [T] int64, the cache slot of each token; negative writes nothing.
        query_start: [B + 1] int32; sequence b owns tokens query_start[b] to query_start[b + 1].
        context_lens: [B] int32, tokens of each sequence with this step's.
        block_tables: [B, M] int32, blocks of each sequence in order.
        logit_rows: [R] int64, the tokens whose logits are wanted.
    """

    token_ids: Ints
    positions: Ints
    slot_mapping: Ints
    query_start: Ints
    context_lens: Ints
    block_tables: Ints
    logit_rows: Ints


NOT_NUMBERS, NONE_LEFT = -2, -1
"""Given in the place of a drawn token: its logits hold NaN or +inf, or nothing but -inf. 0 is fed then."""


PENALIZED, BANNED = 1, 2
"""Bits of ``Edits.flags``."""


@dataclass(frozen=True)
class Edits:
    """What the rules of requests do to logit rows before tokens are drawn from them; E entries, N masks.

        v = logit + bias
        penalized:  v = v / repetition if v > 0 else v · repetition
                    v = v − frequency · count − presence · [count > 0]
        banned, or a 0 in the row's mask:  v = -inf

    Attributes:
        starts: [R + 1] int32; row r owns entries starts[r] to starts[r + 1], each of another token.
        tokens: [E] int32.
        biases, counts: [E] float32; the count is how often the token is in the output.
        flags: [E] int32, PENALIZED and BANNED.
        penalties: [R, 3] float32: repetition, presence, frequency.
        masked: [R] int32, the mask of each row; -1 for none.
        masks: [N, at least V / 32] int32: token t may come if bit t % 32 of word t // 32 is 1.
    """

    starts: NDArray[np.int32]
    tokens: NDArray[np.int32]
    biases: NDArray[np.float32]
    counts: NDArray[np.float32]
    flags: NDArray[np.int32]
    penalties: NDArray[np.float32]
    masked: NDArray[np.int32]
    masks: NDArray[np.int32]


@dataclass(frozen=True)
class Draws:
    """How an executor that ``draws_tokens`` draws a token for each logit row.

    Attributes:
        floats: [R, 3] float64: temperature; top-p; how far below the likeliest's logit a token may be, as
            min-p has it, -inf for no such limit.
        integers: [R, 3] int64: top-k, 0 for all tokens and 1 for the likeliest; the low 64 bits of the seed;
            the token's index in its output. Random numbers are a function of the last two.
        edits: what is done to the rows first; None for nothing.
        top: how many of each row's likeliest tokens are told, at most 32, with log-probabilities of these
            and of the token that was drawn, all as the model gave them; None for no log-probabilities.
    """

    floats: NDArray[np.float64]
    integers: NDArray[np.int64]
    edits: Edits | None = None
    top: int | None = None


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of probabilities as the model gave them, before every edit.

    Attributes:
        chosen: [R] float64, of the token that was drawn; NaN where the row's logits are not numbers.
        likeliest: [R, n] float64, of the likeliest tokens, likeliest first; -inf past the last.
        tokens: [R, n] int64, the ids of those, lower ids first among equals; -1 past the last.
    """

    chosen: NDArray[np.float64]
    likeliest: NDArray[np.float64]
    tokens: NDArray[np.int64]

    def rows(self, wanted: list[int]) -> Logprobs:
        """Those of some rows."""
        return Logprobs(self.chosen[wanted], self.likeliest[wanted], self.tokens[wanted])


@dataclass(frozen=True)
class StepResult:
    """What a step gave.

    Attributes:
        token_ids: [R] int64, the most likely token of each logit row, or the one that was drawn for it.
        logits: [R, V] float32, or None where the caller asked for tokens only.
        logprobs: where ``Draws.top`` asked for them.
    """

    token_ids: NDArray[np.int64]
    logits: NDArray[np.float32] | None
    logprobs: Logprobs | None = None


@dataclass(frozen=True)
class MemoryNeeds:
    """What an executor takes beside its cache.

    Attributes:
        weights: bytes that the weights take once all were used.
        workspace: bytes that the largest step takes.
        free: bytes that its device has left for all of this and the cache; None for the machine's memory.
        loaded: how many of ``weights`` are taken already, and so no part of what is free.
    """

    weights: int
    workspace: int
    free: int | None = None
    loaded: int = 0


class StepHandle(Protocol):
    """A step that may still be running."""

    def result(self) -> StepResult:
        """Wait for the step."""
        ...


class Executor(Protocol):
    """An artifact that is ready to run.

    An executor may also have ``feeds_tokens = True``: a step may then be submitted before the result of the
    one before it is known, and take its tokens from there. Steps run in the order of their submission.
    With ``draws_tokens = True`` its ``submit`` takes ``draws``, a :class:`Draws`: the tokens that it gives,
    and feeds to the next step, are then drawn instead of the most likely.
    """

    @property
    def cache_spec(self) -> CacheSpec | None:
        """What cache it needs; None when the artifact is not paged and takes whole sequences."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, the width of the logits."""
        ...

    @property
    def batch_invariant(self) -> bool:
        """Whether a row's bits are the same whatever else is in the step, and however it is chunked."""
        ...

    @property
    def kv_dtypes(self) -> tuple[str, ...]:
        """How the cache can store numbers ("f32", "bf16", "i8"); the first is the default."""
        ...

    def block_bytes(self, kv_dtype: str | None = None) -> int:
        """Bytes that one block takes over all layers.

        Args:
            kv_dtype: one of ``kv_dtypes``; the default when None.
        """
        ...

    def memory(self, *, tokens: int, rows: int) -> MemoryNeeds:
        """What it takes beside the cache when a step has up to ``tokens`` tokens and ``rows`` logit rows."""
        ...

    def allocate(self, num_blocks: int, *, kv_dtype: str | None = None) -> None:
        """Provide a cache of ``num_blocks`` blocks; what an earlier one held is gone.

        Args:
            kv_dtype: one of ``kv_dtypes``; the default when None.

        Raises:
            CapacityError: there is not enough memory.
        """
        ...

    def submit(self, step: StepInputs, *, logits: bool = True) -> StepHandle:
        """Start a step.

        Args:
            logits: whether the logits are wanted beside the most likely tokens.

        Raises:
            RequestError: the arrays disagree with each other or with the cache.
        """
        ...

    def logits(self, token_ids: Ints, rows: Ints | None = None) -> NDArray[np.float32]:
        """Logits [R, V] of one whole sequence [T], whatever the cache holds. Works for every artifact.

        Args:
            rows: [R], the tokens whose logits are wanted; all of them when None.

        Raises:
            RequestError: there is no token, or one is outside the vocabulary.
        """
        ...


class LayeredExecutor(Executor, Protocol):
    """An executor that can leave the model early: its first layers, then the final norm and the head.

    Optional; :func:`is_layered` says who can. A step of the first layers reads and writes only their part of
    the cache, in the same slots as a whole step, so what a whole step has computed serves it, and a whole
    step that runs the same tokens again writes over what it left.
    """

    @property
    def num_layers(self) -> int:
        """L, of the whole model."""
        ...

    def prepare_layers(self, layers: int) -> None:
        """Make what a step of the first ``layers`` layers needs, from the same weights.

        Raises:
            RequestError: there are not so many layers.
            ArtifactError: the model cannot be left there.
        """
        ...

    def submit(self, step: StepInputs, *, logits: bool = True, layers: int | None = None) -> StepHandle:
        """Start a step of the whole model, or of its first ``layers`` layers only.

        Raises:
            RequestError: as for a whole step, and as ``prepare_layers``.
            ArtifactError: as ``prepare_layers``.
        """
        ...


def is_layered(executor: Executor) -> TypeGuard[LayeredExecutor]:
    """Whether an executor can leave its model early."""
    return hasattr(executor, "prepare_layers")


def feeds_tokens(executor: Executor) -> bool:
    """Whether a step may take its tokens from the step before: see ``StepInputs.token_ids``."""
    return bool(getattr(executor, "feeds_tokens", False))


def draws_tokens(executor: Executor) -> bool:
    """Whether the executor can draw tokens itself: see :class:`Draws`."""
    return bool(getattr(executor, "draws_tokens", False))
