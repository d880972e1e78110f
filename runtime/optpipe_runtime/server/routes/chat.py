"""POST /v1/chat/completions: a conversation, continued."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...sampling.structured import StructuredOutput
from ..answer import Prepared, answer
from ..chat_style import ChatOptions, ChatStyle
from ..conversation import chat_prompt
from ..errors import invalid
from ..job import Job
from ..json_body import parse
from ..openapi import body, errors
from ..params import sampling_params, structured_output
from ..request_info import RequestInfo
from ..schema.chat import ChatAnswer, ChatRequest, NamedTool
from ..service import Service
from ..tool_calls import OPEN, named_schema, required_schema

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    response_model=ChatAnswer,
    response_model_exclude_none=True,
    openapi_extra=body(ChatRequest),
    responses=errors(400, 401, 403, 404, 408, 413, 415, 429, 431, 500, 503, 504),
)
async def chat_completions(request: Request) -> Response:
    """Continue a conversation."""
    return await answer(request, prepare)


def prepare(service: Service, raw: bytes, info: RequestInfo) -> Prepared:
    """Parse, render, tokenize, submit.

    Raises:
        ApiError, RequestError: the request is wrong, or there is no room.
    """
    asked = parse(ChatRequest, raw)
    service.check_model(asked.model)
    _check(asked, service)
    calls, function, forced = _tool_choice(asked)
    shape = structured_output(asked.response_format, asked.structured_outputs)
    if forced is not None and shape is not None:
        raise invalid(
            "A tool that must be called leaves no room for another shape of the text.", "tool_choice"
        )
    params = sampling_params(
        asked,
        service.config,
        max_tokens=asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        structured=forced or shape,
    )
    if calls == "auto" and service.encoder.is_special(OPEN):
        params = replace(params, skip_special_tokens=False)  # or the marks of calls would be left out
    prompt = chat_prompt(
        service.encoder,
        service.tokenizer,
        asked.messages,
        None if calls == "none" else asked.tools,
        asked.chat_template_kwargs,
        most=service.config.max_prompt_tokens,
    )
    options = ChatOptions(
        name=f"chatcmpl-{uuid.uuid4().hex}",
        model=service.config.model_name,
        created=int(time.time()),
        n=params.n,
        logprobs=bool(asked.logprobs),
        top_logprobs=asked.top_logprobs or 0,
        calls=calls,
        function=function,
        parallel=asked.parallel_tool_calls is not False,
    )
    info.facts |= {"stream": bool(asked.stream), "messages": len(asked.messages), "n": params.n}
    if ignored := asked.without_effect:
        info.facts["ignored"] = ",".join(ignored)
    job = Job(service, options.name, [prompt], params, asked, info)
    style = ChatStyle(options, service.texts)
    return Prepared(job, style, bool(asked.stream), asked.wants_usage, heavy=bool(asked.logprobs))


def _check(asked: ChatRequest, service: Service) -> None:
    if len(asked.tools or ()) > service.config.max_tools:
        raise invalid(f"A request may have {service.config.max_tools} tools here.", "tools")
    if asked.top_logprobs and not asked.logprobs:
        raise invalid("top_logprobs needs logprobs to be true.", "top_logprobs")
    if asked.stream_options is not None and not asked.stream:
        raise invalid("stream_options needs stream to be true.", "stream_options")
    if 0 in (asked.max_tokens, asked.max_completion_tokens):
        raise invalid("max_tokens must be at least 1.", "max_tokens")


def _tool_choice(
    asked: ChatRequest,
) -> tuple[Literal["none", "auto", "required", "named"], str, StructuredOutput | None]:
    """How tools are called, which one must be, and the shape of the text that makes sure of it."""
    choice, tools = asked.tool_choice, asked.tools or []
    names = [it.function.name for it in tools]
    if len(set(names)) < len(names):
        raise invalid("Two tools have the same name.", "tools")
    if choice in (None, "none", "auto"):
        return ("none" if choice == "none" or not tools else "auto"), "", None
    if not tools:
        raise invalid("tool_choice asks for a call, but there are no tools.", "tool_choice")
    if isinstance(choice, NamedTool):
        schema = named_schema(tools, choice.function.name)
        return "named", choice.function.name, StructuredOutput(json_schema=schema)
    schema = required_schema(tools, parallel=asked.parallel_tool_calls is not False)
    return "required", "", StructuredOutput(json_schema=schema)
