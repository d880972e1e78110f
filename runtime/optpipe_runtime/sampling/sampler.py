"""The choice of tokens for all sequences of a step.

Rows are independent: a row's token depends on its logits, its sequence and its seed, never on the batch or
on threads. A group with drafts is sampled row by row until a token differs from its draft. Every proposer's
draft is certain (q = 1), so that this is exact rejection sampling: text with drafts equals text without.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import EngineError, OptpipeError
from optpipe.targets.protocol import NOT_NUMBERS, Logprobs

from .bad_words import TokenWords
from .choice import choose, likeliest
from .drawing import refusal
from .grammar import Grammar
from .logprobs import TokenLogprobs, token_logprobs
from .mask import Scratch
from .params import SamplingParams
from .state import Finish, RowState
from .uniform import uniform

log = logging.getLogger("optpipe.sampling")
INLINE = 1 << 21  # logits a step that are not worth a second thread: about 2 ms


@dataclass(frozen=True, slots=True)
class Group:
    """One sequence of a step; it owns ``1 + len(drafts)`` consecutive rows of logits.

    Attributes:
        state: of the sequence.
        drafts: the tokens that were run on trial: row i + 1 is what follows draft i.
    """

    state: RowState
    drafts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """What one sequence gained.

    Attributes:
        tokens: drafts that were right and one token more; the last may be an end token. Empty on an error
            at the first row.
        logprobs: of each token, where the request asked for them.
        finish: "stop" at an end token or the grammar's end, "length" at ``max_tokens``, "error"; else None.
        stop_token: the one of ``stop_token_ids`` that ended the text; None for the model's own end token.
        error: why no further token could be chosen; other sequences are not touched by it.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish: Finish | None = None
    stop_token: int | None = None
    error: OptpipeError | None = None


class Sampler:
    """Chooses tokens. Its threads sleep between steps.

    Args:
        vocab_size: V, the width of the logits.
        threads: how many work on a step, with the caller's own.
    """

    def __init__(self, vocab_size: int, *, threads: int = 2) -> None:
        assert vocab_size > 0 and threads > 0, f"{vocab_size = }, {threads = }"
        self.vocab_size = vocab_size
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "optpipe-sampler") if threads > 1 else None
        self._local = threading.local()

    def state(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        *,
        eos: Collection[int],
        seed: int,
        grammar: Grammar | None = None,
        bad_words: TokenWords = (),
    ) -> RowState:
        """The state of a new sequence.

        Args:
            params: of the request; ``SamplingParams.check`` has passed them.
            prompt: its token ids.
            eos: the model's end tokens.
            seed: of this sequence; ``child_seed(seed, i)`` for the i-th of n.
            grammar: a fresh one for this sequence, when ``params.structured`` asks for it.
            bad_words: ``params.bad_words`` as ``encode_bad_words`` gives them.
        """
        return RowState(
            params,
            prompt,
            vocab_size=self.vocab_size,
            eos=eos,
            seed=seed,
            grammar=grammar,
            bad_words=bad_words,
        )

    def sample_greedy(
        self, token_ids: NDArray[np.int64], groups: Sequence[Group], logprobs: Logprobs | None = None
    ) -> list[Sampled]:
        """Take the tokens as the executor found them: the most likely, or those that it drew.

        Args:
            token_ids: [R], R = the groups' rows; none of the states needs logits. NOT_NUMBERS or NONE_LEFT in
                the place of a token is the error of its group.
            logprobs: of those tokens, where a group without drafts asks for them.
        """
        ids = token_ids.tolist()
        found = []
        row = 0
        for group in groups:
            rows = 1 + len(group.drafts)
            if group.state.params.logprobs is None:
                found.append(_take(group, ids[row : row + rows]))
            else:
                assert logprobs is not None and not group.drafts, f"{logprobs = }, {group.drafts = }"
                found.append(_told(group, ids[row], logprobs, row))
            row += rows
        assert row == len(ids), f"{row = } of the groups, {len(ids) = }"
        return found

    def sample(self, logits: NDArray[np.float32], groups: Sequence[Group]) -> list[Sampled]:
        """Choose the next tokens; each state is advanced by them.

        Args:
            logits: [R, V] float32, contiguous rows, R = the groups' rows. They are not changed.
        """
        starts = [0]
        for group in groups:
            starts.append(starts[-1] + 1 + len(group.drafts))
        assert logits.shape == (starts[-1], self.vocab_size), f"{logits.shape = }, {starts[-1] = }"
        found: list[Sampled | None] = [None] * len(groups)

        def work(i: int) -> None:
            found[i] = _sample(logits[starts[i] : starts[i + 1]], groups[i], self._scratch())

        self._divide(work, len(groups), logits.size)
        return [it for it in found if it is not None]

    def prompt_logprobs(
        self, logits: NDArray[np.float32], next_ids: Sequence[int], top: int
    ) -> list[TokenLogprobs]:
        """The log-probabilities of tokens that are given.

        Args:
            logits: [n, V]; row i is what follows the token before ``next_ids[i]``.
            next_ids: [n] token ids.
            top: how many of the likeliest to report at each.

        Raises:
            KernelError: a row is not numbers.
        """
        found: list[TokenLogprobs | None] = [None] * len(next_ids)

        def work(i: int) -> None:
            found[i] = token_logprobs(logits[i], int(next_ids[i]), top, self._scratch())

        self._divide(work, len(next_ids), logits.size)
        return [it for it in found if it is not None]

    def close(self) -> None:
        """Let the threads go."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _divide(self, work: Callable[[int], None], count: int, size: int) -> None:
        """Do ``work`` for each of ``count`` items; a thread takes the next one when it is free."""
        if self._pool is None or size <= INLINE:
            for i in range(count):
                work(i)
            return
        items = itertools.count()

        def share() -> None:
            while (i := next(items)) < count:
                work(i)

        others = [self._pool.submit(share) for _ in range(min(self._threads, count) - 1)]
        try:
            share()
        finally:
            for other in others:
                if not other.cancel():  # a thread that did not get to run has nothing left to do
                    other.result()

    def _scratch(self) -> Scratch:
        scratch: Scratch | None = getattr(self._local, "scratch", None)
        if scratch is None:
            scratch = self._local.scratch = Scratch(self.vocab_size)
        return scratch


def _take(group: Group, ids: list[int]) -> Sampled:
    state = group.state
    if ids[0] < 0:
        state.finish = "error"
        return Sampled((), None, state.finish, None, refusal(ids[0]))
    if not group.drafts:
        state.advance(ids[0])
        return Sampled((ids[0],), None, state.finish, state.stop_token)
    tokens = []
    for row, token in enumerate(ids):
        state.advance(token)
        tokens.append(token)
        if _over(group, row, token):
            break
    return Sampled(tuple(tokens), None, state.finish, state.stop_token)


def _told(group: Group, token: int, logprobs: Logprobs, row: int) -> Sampled:
    """Take a token with its log-probabilities; there are none where the model's logits are not numbers."""
    logprob, top = float(logprobs.chosen[row]), group.state.params.logprobs or 0
    taken = _take(group, [NOT_NUMBERS if np.isnan(logprob) and token >= 0 else token])
    if taken.error is not None:
        return replace(taken, logprobs=())
    pairs = zip(logprobs.tokens[row, :top].tolist(), logprobs.likeliest[row, :top].tolist(), strict=True)
    likeliest = tuple((known, value) for known, value in pairs if known >= 0)
    return replace(taken, logprobs=(TokenLogprobs(token, logprob, likeliest),))


def _sample(logits: NDArray[np.float32], group: Group, scratch: Scratch) -> Sampled:
    state = group.state
    tokens: list[int] = []
    logprobs: list[TokenLogprobs] | None = None if state.params.logprobs is None else []
    error: OptpipeError | None = None
    try:
        for row, values in enumerate(logits):
            token = _next(values, state, scratch)
            if logprobs is not None:
                logprobs.append(token_logprobs(values, token, state.params.logprobs or 0, scratch))
            tokens.append(token)
            state.advance(token)
            if _over(group, row, token):
                break
    except OptpipeError as caught:
        state.finish, error = "error", caught
    except Exception as caught:  # a defect of ours, or of a grammar's library: its neighbours go on
        log.exception("no token could be chosen")
        state.finish = "error"
        error = EngineError(f"No token could be chosen: {type(caught).__name__}.")
        error.__cause__ = caught
    known = None if logprobs is None else tuple(logprobs)
    return Sampled(tuple(tokens), known, state.finish, state.stop_token, error)


def _next(values: NDArray[np.float32], state: RowState, scratch: Scratch) -> int:
    row = state.edited(values, scratch)
    if state.params.greedy:
        return row.token(likeliest(row.values))
    draws = partial(uniform, state.seed, state.outputs)
    return row.token(choose(row.values, state.params, draws, scratch))


def _over(group: Group, row: int, token: int) -> bool:
    """Whether the rows behind this one are of no use."""
    return group.state.finish is not None or row == len(group.drafts) or token != group.drafts[row]
