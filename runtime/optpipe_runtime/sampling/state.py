"""What the sampler remembers of one sequence, and what it does to a row of its logits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import RequestError

from .bad_words import BadWords, TokenWords
from .grammar import Grammar
from .mask import Row, Scratch, apply_bits, keep
from .params import SamplingParams
from .penalties import Penalties
from .rules import Rules

Finish = Literal["stop", "length", "error"]


class RowState:
    """One sequence: its parameters and everything that its output changes.

    Attributes:
        params: of the request.
        seed: of this sequence's random numbers.
        outputs: tokens that came so far.
        finish: why the sequence ended, or None while it goes on.
        stop_token: which of ``stop_token_ids`` ended it; None for the model's own end token.
        grammar: what shape the text has, or None.
    """

    __slots__ = (
        "_allowed", "_bad_words", "_bias", "_changes", "_edited", "_ends", "_limit", "_penalties", "_plain",
        "_vocab_size", "finish", "grammar", "outputs", "params", "seed", "stop_token",
    )  # fmt: skip

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        *,
        vocab_size: int,
        eos: Collection[int],
        seed: int,
        grammar: Grammar | None = None,
        bad_words: TokenWords = (),
    ) -> None:
        self.params = params
        self.seed = seed
        self._vocab_size = vocab_size
        self.grammar = grammar
        self.outputs = 0
        self.finish: Finish | None = None
        self.stop_token: int | None = None
        self._ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else frozenset(eos))
        self._limit = params.max_tokens
        self._penalties = Penalties(params, prompt, vocab_size) if Penalties.wanted(params) else None
        self._bad_words = BadWords(bad_words) if bad_words else None
        self._bias = _bias_arrays(params)
        self._allowed = _sorted_ids(params.allowed_token_ids)
        changes = (self._penalties, self._bad_words, self._bias)
        self._changes = any(it is not None for it in changes)
        self._edited = self._changes or self._allowed is not None or grammar is not None
        self._plain = params.greedy and params.logprobs is None and not self._edited

    @property
    def needs_logits(self) -> bool:
        """Whether the most likely token alone does not decide the next one."""
        return not self._plain or self.outputs < self.params.min_tokens

    def drawable(self, ahead: bool = False) -> bool:
        """Whether ``rules`` says all that is done to the next row of logits; ``ahead``: to the one after."""
        if self.grammar is not None:  # which may win over ``min_tokens``: that takes a look at the logits
            return not ahead and self.outputs >= self.params.min_tokens
        return not ahead or (self._penalties is None and self._bad_words is None)

    def rules(self, ahead: bool = False) -> Rules:
        """What is done to the next row of logits, or to the one after; see ``drawable``.

        Raises:
            RequestError: the grammar failed.
        """
        banned = [] if self._bad_words is None else self._bad_words.last()
        if self.outputs + ahead < self.params.min_tokens:
            banned += self._ends
        there = [
            it for it in banned if it < self._vocab_size
        ]  # a tokenizer may have more tokens than the model
        return Rules(self._bias, self._penalties, there, self._mask())

    def _mask(self) -> NDArray[np.uint32] | None:
        """A bit a token: whether it may come; None where all may."""
        words = -(-self._vocab_size // 32)
        bits = None if self.grammar is None else self.grammar.bits()[:words]
        if self._allowed is None:
            return bits
        flags = np.zeros(32 * words, dtype=np.bool_)
        flags[self._allowed] = True
        allowed: NDArray[np.uint32] = np.packbits(flags, bitorder="little").view(np.uint32)
        return allowed if bits is None else allowed & bits

    def advance(self, token: int) -> None:
        """Take an output token into account."""
        if self._penalties is not None:
            self._penalties.advance(token)
        if self._bad_words is not None:
            self._bad_words.advance(token)
        self.outputs += 1
        if token in self._ends:
            self.finish = "stop"
            self.stop_token = token if token in self.params.stop_token_ids else None
        elif self.outputs == self._limit:
            self.finish = "length"
        if self.grammar is not None:
            self.grammar.advance(token)
            if self.finish is None and self.grammar.stopped:
                self.finish = "stop"

    def edited(self, row: NDArray[np.float32], scratch: Scratch) -> Row:
        """The row as it is sampled from; ``row`` itself stays as it is.

        Args:
            row: [V], the model's logits.

        Raises:
            RequestError: the grammar failed, or no token is left.
        """
        short = self.outputs < self.params.min_tokens
        if not short and not self._edited:
            return Row(row, None)
        values = scratch.copy(row) if short or self._changes else row  # masks write elsewhere
        if self._bad_words is not None:
            self._bad_words.apply(values)
        if self._bias is not None:
            values[self._bias[0]] += self._bias[1]
        if self._penalties is not None:
            self._penalties.apply(values)
        saved = values[list(self._ends)] if short else None
        if short:
            values[list(self._ends)] = -np.inf
        found = self._masked(values, scratch)
        if saved is not None and self.grammar is not None and not np.isfinite(found.values).any():
            values[list(self._ends)] = saved  # nothing but an end fits the grammar: it wins over min_tokens
            found = self._masked(values, scratch)
        if not len(found.values):
            raise RequestError("No token may come next: the rules of the request exclude all.")
        return found

    def _masked(self, values: NDArray[np.float32], scratch: Scratch) -> Row:
        if self.grammar is not None:
            bits = self.grammar.bits()
            if self._allowed is None:
                return apply_bits(values, bits, scratch)
            shifts = (self._allowed & 31).astype(np.uint32)
            return keep(values, self._allowed[(bits[self._allowed >> 5] >> shifts) & 1 == 1])
        return Row(values, None) if self._allowed is None else keep(values, self._allowed)


def _bias_arrays(params: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    if not params.logit_bias:
        return None
    ids = np.asarray(list(params.logit_bias), dtype=np.int64)
    return ids, np.asarray(list(params.logit_bias.values()), dtype=np.float32)


def _sorted_ids(ids: Sequence[int] | None) -> NDArray[np.int64] | None:
    return None if ids is None else np.unique(np.asarray(ids, dtype=np.int64))
