"""The fields of a request become the engine's ``SamplingParams``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..sampling.params import SamplingParams
from ..sampling.structured import StructuredOutput
from .config import ServerConfig
from .errors import invalid
from .schema.sampling import ResponseFormat, SamplingFields, StructuredOutputs

_ID = re.compile(r"0|[1-9][0-9]{0,9}")  # one spelling each, or two keys could be one token

# Fields that mean the same here and there. Those that are not given keep the engine's defaults.
_SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "n",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
)


def sampling_params(
    body: SamplingFields,
    config: ServerConfig,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    structured: StructuredOutput | None = None,
) -> SamplingParams:
    """Check the server's limits and translate.

    Raises:
        ApiError: a limit of this server is passed.
        RequestError: a value that no model could take.
    """
    stop = _as_tuple(body.stop)
    _limit("n", body.n or 1, config.max_n)
    _limit("stop", len(stop), config.max_stop)
    _limit("stop_token_ids", len(body.stop_token_ids or ()), config.max_stop)
    _limit("bad_words", len(body.bad_words or ()), config.max_stop)
    _limit("logit_bias", len(body.logit_bias or ()), config.max_bias)
    _limit("allowed_token_ids", len(body.allowed_token_ids or ()), config.max_bias)
    _limit("logprobs", logprobs or 0, config.max_logprobs)
    _limit("prompt_logprobs", prompt_logprobs or 0, config.max_logprobs)
    given: dict[str, Any] = {name: value for name in _SAME if (value := getattr(body, name)) is not None}
    if body.logit_bias:
        given["logit_bias"] = _bias(body.logit_bias)
    return SamplingParams(
        **given,
        stop=stop,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        bad_words=tuple(body.bad_words or ()),
        allowed_token_ids=None if body.allowed_token_ids is None else tuple(body.allowed_token_ids),
        max_tokens=max_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        structured=structured,
    )


def structured_output(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> StructuredOutput | None:
    """The shape that a request wants its text in, or None.

    Raises:
        ApiError: two shapes are asked for, or one is incomplete.
        RequestError: one is malformed, too long or nests too deep.
    """
    wanted = None if response_format is None or response_format.type == "text" else response_format
    if structured_outputs is None:
        return None if wanted is None else _of_format(wanted)
    if wanted is not None:
        raise invalid(
            "response_format and structured_outputs cannot be given together.", "structured_outputs"
        )
    given = {k: v for k, v in structured_outputs if v is not None}
    if len(given) != 1:
        names = "json, regex, grammar and choice"
        raise invalid(
            f"structured_outputs needs exactly one of {names}, got {len(given)}.", "structured_outputs"
        )
    ((name, value),) = given.items()
    if name == "choice":
        return StructuredOutput(grammar=_alternatives(value))
    return StructuredOutput(**{"json_schema" if name == "json_" else name: value})


def _of_format(wanted: ResponseFormat) -> StructuredOutput:
    if wanted.type == "json_object":
        return StructuredOutput(json_object=True)
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise invalid("response_format lacks json_schema.schema.", "response_format.json_schema")
    return StructuredOutput(json_schema=wanted.json_schema.schema_)


def _alternatives(choices: list[str]) -> str:
    if not all(choices):
        raise invalid("structured_outputs.choice must not hold an empty text.", "structured_outputs.choice")
    return "start: " + " | ".join(json.dumps(it) for it in choices)


def _bias(bias: Mapping[str, float]) -> dict[int, float]:
    for key in bias:
        if not _ID.fullmatch(key):
            raise invalid(f"logit_bias has the key '{key[:20]}', which is no token id.", "logit_bias")
    return {int(key): value for key, value in bias.items()}


def _as_tuple(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None or stop == "":  # clients send "" for none
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _limit(name: str, value: int, most: int) -> None:
    if value > most:
        raise invalid(f"{name} may be {most} at most here, got {value}.", name)
