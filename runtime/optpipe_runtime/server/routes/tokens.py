"""POST /tokenize and POST /detokenize."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request

from ..conversation import chat_prompt
from ..errors import invalid
from ..json_body import parse, read_body
from ..openapi import body, errors
from ..prompts import PromptInput
from ..schema.tokens import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest
from ..service import Service, service_of

router = APIRouter()
_ERRORS = errors(400, 401, 403, 404, 408, 413, 415, 429, 431)


@router.post(
    "/tokenize", response_model=TokenizeAnswer, openapi_extra=body(TokenizeRequest), responses=_ERRORS
)
async def tokenize(request: Request) -> TokenizeAnswer:
    """Text, or a conversation, as token ids."""
    service = service_of(request)
    raw = await read_body(request, service.config)
    return await service.prepare(partial(_tokenize, service, raw), size=len(raw))


@router.post(
    "/detokenize", response_model=DetokenizeAnswer, openapi_extra=body(DetokenizeRequest), responses=_ERRORS
)
async def detokenize(request: Request) -> DetokenizeAnswer:
    """Token ids as text."""
    service = service_of(request)
    raw = await read_body(request, service.config)
    return await service.prepare(partial(_detokenize, service, raw), size=len(raw))


def _tokenize(service: Service, raw: bytes) -> TokenizeAnswer:
    asked = parse(TokenizeRequest, raw)
    service.check_model(asked.model)
    ids = _encoded(service, asked).ids
    strings = [service.texts.text_of(it) for it in ids] if asked.return_token_strs else None
    return TokenizeAnswer(
        count=len(ids), max_model_len=service.engine.context_length, tokens=list(ids), token_strs=strings
    )


def _encoded(service: Service, asked: TokenizeRequest) -> PromptInput:
    if (asked.prompt is None) == (asked.messages is None):
        raise invalid("The request needs either prompt or messages.", "prompt")
    most = service.config.max_prompt_tokens  # what is surely longer could not be generated from
    if asked.prompt is not None:
        special = asked.add_special_tokens
        return service.encoder.text(asked.prompt, add_special_tokens=special, most=most)
    variables = asked.chat_template_kwargs
    messages = asked.messages or []
    return chat_prompt(service.encoder, service.tokenizer, messages, asked.tools, variables, most=most)


def _detokenize(service: Service, raw: bytes) -> DetokenizeAnswer:
    asked = parse(DetokenizeRequest, raw)
    service.check_model(asked.model)
    top = max(asked.tokens, default=0)
    if top >= service.engine.vocab_size:
        raise invalid(
            f"tokens names the token id {top}, but the vocabulary ends at {service.engine.vocab_size - 1}.",
            "tokens",
        )
    return DetokenizeAnswer(prompt=service.texts.decode(asked.tokens))
