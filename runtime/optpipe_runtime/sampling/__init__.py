"""Choosing tokens: parameters, the sampler, random numbers, penalties, grammars, stop strings, logprobs."""

from __future__ import annotations

from .bad_words import encode_bad_words
from .drawing import draws_of
from .grammar import Grammar
from .logprobs import TokenLogprobs
from .params import SamplingParams
from .sampler import Group, Sampled, Sampler
from .state import RowState
from .stop import StopChecker
from .structured import StructuredOutput
from .uniform import child_seed, uniform

__all__ = [
    "Grammar",
    "Group",
    "RowState",
    "Sampled",
    "Sampler",
    "SamplingParams",
    "StopChecker",
    "StructuredOutput",
    "TokenLogprobs",
    "child_seed",
    "draws_of",
    "encode_bad_words",
    "uniform",
]
