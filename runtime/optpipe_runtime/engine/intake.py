"""From what a caller asks to sequences that can be scheduled. Never runs in the engine's thread."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from optpipe.errors import RequestError

from ..core import Sequence as TokenSequence
from ..sampling import Grammar, Sampler, SamplingParams, child_seed, encode_bad_words
from ..sampling.grammar import GrammarCompiler
from ..tokenizer import Tokenizer
from .request import Choice, Request
from .text import TextState

Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Asked:
    """What ``submit`` was given beside the parameters.

    Attributes:
        prompt: text or token ids.
        priority, salt: as the scheduler has them.
        arrival: who came first, as a counter.
        seed: of the first choice.
    """

    prompt: Prompt
    priority: int
    salt: bytes
    arrival: int
    seed: int


class Intake:
    """Checks requests and makes their choices.

    Args:
        sampler: makes the states of choices.
        tokenizer: without one, prompts must be token ids.
        eos: the model's end tokens.
        context_length: positions that a sequence may have.
        seed: of the seeds of requests without one; None for others in every run.
    """

    def __init__(
        self,
        sampler: Sampler,
        tokenizer: Tokenizer | None,
        eos: frozenset[int],
        context_length: int,
        seed: int | None,
    ) -> None:
        self._sampler, self._tokenizer, self._eos = sampler, tokenizer, eos
        self._context_length = context_length
        self._arrivals, self._ids = itertools.count(), itertools.count()
        self._random = random.Random(seed)
        self._compiler: GrammarCompiler | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of the compiler's process."""
        with self._lock:
            if self._compiler is not None:
                self._compiler.close()

    def compiles(self, params: SamplingParams) -> bool:
        """Whether a request has to wait for a grammar."""
        compiler, wanted = self._compiler, params.structured
        return wanted is not None and (compiler is None or not compiler.knows(wanted))

    def ask(self, prompt: Prompt, params: SamplingParams, priority: int, salt: bytes) -> Asked:
        """What is settled at once, in the order in which callers come.

        Raises:
            RequestError: the prompt is neither text nor a sequence.
        """
        if not isinstance(prompt, str | Sequence) or isinstance(prompt, bytes):
            raise RequestError(f"A prompt is text or token ids, got {type(prompt).__name__}.")
        seed = self._random.getrandbits(63) if params.seed is None else params.seed
        return Asked(prompt, priority, salt, next(self._arrivals), seed)

    def prepare(self, request: Request, asked: Asked) -> None:
        """Fill in the request's prompt and choices: tokenize, compile, check.

        Raises:
            RequestError: the request asks for something impossible.
        """
        params = request.params
        prompt = self._ids_of(asked.prompt)
        params.check(self._sampler.vocab_size, self._context_length)
        room = self._context_length - len(prompt)
        if room < 1:
            raise RequestError(
                f"The prompt has {len(prompt)} tokens; there is room for {self._context_length}, one of them "
                "for the answer."
            )
        length = len(prompt) + (room if params.max_tokens is None else min(params.max_tokens, room))
        words = encode_bad_words(params.bad_words, self._encode) if params.bad_words else ()
        request.prompt = prompt
        for index in range(params.n):
            sequence = TokenSequence(
                next(self._ids),
                prompt,
                max_len=length,
                arrival=asked.arrival,
                priority=asked.priority,
                salt=asked.salt,
                prompt_rows=index == 0 and params.prompt_logprobs is not None,
            )
            state = self._sampler.state(
                params,
                prompt,
                eos=self._eos,
                seed=child_seed(asked.seed, index),
                grammar=self._grammar(params),
                bad_words=words,
            )
            text = TextState(self._tokenizer, prompt, params, self._eos)
            request.choices.append(Choice(request, index, sequence, state, text))

    def _ids_of(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise RequestError("The engine has no tokenizer, so a prompt must be token ids.")
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise RequestError("The prompt is not valid UTF-8 text.") from None
            ids = tuple(self._tokenizer.encode(prompt))
        else:
            if any(isinstance(it, bool) or not hasattr(it, "__index__") for it in prompt):
                raise RequestError("A prompt of token ids holds something that is no integer.")
            ids = tuple(map(int, prompt))
        if not ids:
            raise RequestError("The prompt is empty: there is nothing to continue.")
        low, high = min(ids), max(ids)
        if low < 0 or high >= self._sampler.vocab_size:
            raise RequestError(
                f"Token ids must be in [0, {self._sampler.vocab_size}), got {low if low < 0 else high}."
            )
        return ids

    def _encode(self, text: str) -> list[int]:
        if self._tokenizer is None:
            raise RequestError("The engine has no tokenizer, so it cannot look for bad words.")
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _grammar(self, params: SamplingParams) -> Grammar | None:
        """A grammar at its beginning; the compiler is made when it is first needed."""
        if params.structured is None:
            return None
        if self._tokenizer is None:
            raise RequestError("The engine has no tokenizer, so it cannot shape text.")
        with self._lock:
            if self._compiler is None:
                text = self._tokenizer.backend.to_str()
                self._compiler = GrammarCompiler(text, self._sampler.vocab_size, self._eos)
        return self._compiler.compile(params.structured)
