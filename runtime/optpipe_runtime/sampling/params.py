"""How the tokens of a request are chosen, and when its text ends. Names are the field's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optpipe.errors import RequestError

from . import checks
from .structured import StructuredOutput

# What a request may ask for at most. Each bounds memory or time that one request could take from the others.
MAX_N = 128
MAX_TEMPERATURE = 1000.0
GREEDY_BELOW = 1e-5  # a temperature under this takes the likeliest token, as the field has it
MAX_TOP_K = 1 << 20
MAX_LOGPROBS = 20
MAX_TOKENS = 1 << 24
MAX_STOP_STRINGS = 32
MAX_STOP_CHARACTERS = 512
MAX_STOP_TOKEN_IDS = 1024
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_CHARACTERS = 256
MAX_LOGIT_BIASES = 1024
MAX_BIAS = 100.0
MAX_ALLOWED_TOKEN_IDS = 1 << 20
MAX_PENALTY = 2.0
REPETITION_PENALTIES = (0.01, 100.0)
SEEDS = (-(2**63), 2**64 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of a request are chosen, and when its text ends.

    Logits pass, in this order: grammar and allowed tokens; bad words; end tokens masked below ``min_tokens``;
    ``logit_bias``; penalties; temperature; ``min_p``; ``top_k``; ``top_p`` of what is left.

    Attributes:
        n: how many texts to generate.
        temperature: divides the logits; 0 takes the likeliest token, the lowest id of several.
        top_k: keep only this many of the likeliest tokens; 0 and -1 keep all.
        top_p: keep the likeliest tokens until their probabilities reach this sum.
        min_p: drop tokens less likely than this fraction of the likeliest one.
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or output.
        presence_penalty: taken once from the logit of each token in the output.
        frequency_penalty: taken from the logit of a token for each time that it is in the output.
        logit_bias: token id → number added to its logit.
        allowed_token_ids: only these may come; None allows all.
        bad_words: texts whose last token may not come where it would complete them.
        seed: of the random numbers; None lets the engine draw one.
        stop: strings that end the text.
        stop_token_ids: tokens that end the text, beside the model's own.
        include_stop_str_in_output: whether the stop string stays in the text.
        ignore_eos: whether the model's own end tokens do not end the text.
        min_tokens: end tokens and ``stop_token_ids`` cannot come before this many tokens.
        max_tokens: the most tokens; None for as many as the context holds.
        logprobs: how many of the likeliest tokens to report at each output token, beside the chosen one.
        prompt_logprobs: the same for each prompt token.
        skip_special_tokens: whether special tokens are left out of the text.
        structured: the shape that the text must have.

    Raises:
        RequestError: a value that no model could take; ``check`` finds the others.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    structured: StructuredOutput | None = None

    def __post_init__(self) -> None:
        self._check_choice()
        self._check_lists()
        self._check_lengths()
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            checks.flag(name, getattr(self, name))
        if self.structured is not None and not isinstance(self.structured, StructuredOutput):
            raise RequestError(f"structured must be a StructuredOutput, got {checks.kind(self.structured)}.")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1

    def check(self, vocab_size: int, context: int | None = None) -> None:
        """Check what depends on the model.

        Args:
            vocab_size: tokens have ids below this.
            context: the most positions, or None for no bound.

        Raises:
            RequestError: a token id is outside the vocabulary, or the context is too short.
        """
        checks.inside_vocabulary("logit_bias", self.logit_bias or (), vocab_size)
        checks.inside_vocabulary("allowed_token_ids", self.allowed_token_ids or (), vocab_size)
        checks.inside_vocabulary("stop_token_ids", self.stop_token_ids, vocab_size)
        if context is None:
            return
        for name, wanted in (("min_tokens", self.min_tokens), ("max_tokens", self.max_tokens or 0)):
            if wanted > context:
                raise RequestError(f"{name} is {wanted}, but the model's context has {context} positions.")

    def _check_choice(self) -> None:
        _set(self, "temperature", checks.number("temperature", self.temperature, 0.0, MAX_TEMPERATURE))
        _set(self, "top_k", max(0, checks.integer("top_k", self.top_k, -1, MAX_TOP_K)))
        _set(self, "top_p", checks.number("top_p", self.top_p, 0.0, 1.0, above=True))
        _set(self, "min_p", checks.number("min_p", self.min_p, 0.0, 1.0))
        repetition = checks.number("repetition_penalty", self.repetition_penalty, *REPETITION_PENALTIES)
        _set(self, "repetition_penalty", repetition)
        for name in ("presence_penalty", "frequency_penalty"):
            _set(self, name, checks.number(name, getattr(self, name), -MAX_PENALTY, MAX_PENALTY))
        if self.seed is not None:
            checks.integer("seed", self.seed, *SEEDS)

    def _check_lists(self) -> None:
        _set(self, "stop", checks.strings("stop", self.stop, MAX_STOP_STRINGS, MAX_STOP_CHARACTERS))
        words = checks.strings("bad_words", self.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_CHARACTERS)
        _set(self, "bad_words", words)
        stops = checks.token_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        _set(self, "stop_token_ids", stops)
        allowed = checks.token_ids("allowed_token_ids", self.allowed_token_ids, MAX_ALLOWED_TOKEN_IDS)
        if self.allowed_token_ids is not None and not allowed:
            raise RequestError("allowed_token_ids is empty, so no token could come.")
        _set(self, "allowed_token_ids", allowed or None)
        if self.logit_bias is not None:
            _set(self, "logit_bias", _checked_bias(self.logit_bias))

    def _check_lengths(self) -> None:
        checks.integer("n", self.n, 1, MAX_N)
        checks.integer("min_tokens", self.min_tokens, 0, MAX_TOKENS)
        if self.max_tokens is not None:
            checks.integer("max_tokens", self.max_tokens, 1, MAX_TOKENS)
            if self.min_tokens > self.max_tokens:
                raise RequestError(
                    f"min_tokens must be at most max_tokens, got {self.min_tokens} and {self.max_tokens}."
                )
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), 0, MAX_LOGPROBS)


def _checked_bias(bias: object) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise RequestError(f"logit_bias must map token ids to numbers, got {checks.kind(bias)}.")
    if len(bias) > MAX_LOGIT_BIASES:
        raise RequestError(f"logit_bias may hold {MAX_LOGIT_BIASES} tokens at most, got {len(bias)}.")
    ids = checks.token_ids("logit_bias", list(bias), MAX_LOGIT_BIASES)
    return {it: checks.number("A value of logit_bias", bias[it], -MAX_BIAS, MAX_BIAS) for it in ids}


def _set(params: SamplingParams, name: str, value: object) -> None:
    object.__setattr__(params, name, value)
