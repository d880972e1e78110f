"""POST /v1/completions: text or token ids, continued."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..answer import Prepared, answer
from ..completion_style import CompletionOptions, CompletionStyle
from ..errors import invalid
from ..job import Job
from ..json_body import parse
from ..openapi import body, errors
from ..params import sampling_params, structured_output
from ..prompts import PromptInput
from ..request_info import RequestInfo
from ..schema.completion import CompletionAnswer, CompletionRequest
from ..service import Service

DEFAULT_MAX_TOKENS = 16  # as OpenAI has it

router = APIRouter()


@router.post(
    "/v1/completions",
    response_model=CompletionAnswer,
    openapi_extra=body(CompletionRequest),
    responses=errors(400, 401, 403, 404, 408, 413, 415, 429, 431, 500, 503, 504),
)
async def completions(request: Request) -> Response:
    """Continue one or several prompts."""
    return await answer(request, prepare)


def prepare(service: Service, raw: bytes, info: RequestInfo) -> Prepared:
    """Parse, tokenize, submit.

    Raises:
        ApiError, RequestError: the request is wrong, or there is no room.
    """
    asked = parse(CompletionRequest, raw)
    service.check_model(asked.model)
    _check(asked)
    prompts = _prompts(service, asked)
    max_tokens = DEFAULT_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens
    echoed = asked.logprobs if asked.echo else None
    shown = [it for it in (echoed, asked.prompt_logprobs) if it is not None]
    params = sampling_params(
        asked,
        service.config,
        max_tokens=max(1, max_tokens),
        logprobs=asked.logprobs,
        prompt_logprobs=max(shown, default=None),
        structured=structured_output(asked.response_format, asked.structured_outputs),
    )
    options = CompletionOptions(
        name=f"cmpl-{uuid.uuid4().hex}",
        model=service.config.model_name,
        created=int(time.time()),
        n=params.n,
        echo=bool(asked.echo),
        logprobs=asked.logprobs is not None,
        prompt_logprobs=asked.prompt_logprobs is not None,
        nothing_new=max_tokens == 0,
    )
    info.facts |= {"stream": bool(asked.stream), "prompts": len(prompts), "n": params.n}
    if ignored := asked.without_effect:
        info.facts["ignored"] = ",".join(ignored)
    job = Job(service, options.name, prompts, params, asked, info)
    style = CompletionStyle(options, prompts, service.texts)
    return Prepared(job, style, bool(asked.stream), asked.wants_usage, heavy=bool(shown or asked.logprobs))


def _check(asked: CompletionRequest) -> None:
    if asked.max_tokens == 0 and not asked.echo:
        raise invalid("max_tokens may be 0 only with echo, which then returns the prompt.", "max_tokens")
    if asked.max_tokens == 0 and asked.min_tokens:
        raise invalid("min_tokens must be at most max_tokens, which is 0.", "min_tokens")
    if asked.best_of is not None and asked.best_of != (asked.n or 1):
        raise invalid("best_of must equal n: this server does not choose among more answers.", "best_of")
    if asked.stream_options is not None and not asked.stream:
        raise invalid("stream_options needs stream to be true.", "stream_options")


def _prompts(service: Service, asked: CompletionRequest) -> list[PromptInput]:
    given: Any = asked.prompt
    several: Sequence[Any] = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    if len(several) > service.config.max_prompts:
        raise invalid(
            f"A request may have {service.config.max_prompts} prompts here, got {len(several)}.", "prompt"
        )
    special = asked.add_special_tokens is not False
    encode = service.encoder.text
    return [
        encode(it, add_special_tokens=special, most=service.config.max_prompt_tokens)
        if isinstance(it, str)
        else PromptInput(tuple(it), None)
        for it in several
    ]
