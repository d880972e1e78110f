"""The flags of `optpipe serve`: one a setting of the server and of the engine, with the setting's default."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click

from ..engine.config import EngineConfig
from .config import ServerConfig

# Setting → what --help says. The flag is the setting's name with dashes.
SERVER_FLAGS = {
    "max_body_bytes": "Bytes that a request's body may have.",
    "max_header_bytes": "Bytes that a request's line and headers may have.",
    "max_requests": "Requests in the server at once, waiting and running; more get a 429.",
    "max_prompts": "Prompts in one request of /v1/completions.",
    "max_prompt_tokens": "Tokens of one prompt.  [default: what the model's context leaves]",
    "max_n": "Answers to one prompt.",
    "max_stop": "Stop strings, stop token ids or bad words of a request, each.",
    "max_logprobs": "Alternatives a token in log-probabilities.",
    "max_bias": "Entries of logit_bias or allowed_token_ids.",
    "max_tools": "Tools of a request.",
    "request_timeout": "Seconds from a request's arrival to the end of its answer.",
    "header_timeout": "Seconds that a new connection has for its first headers.",
    "body_timeout": "Seconds that a client has for its body.",
    "write_timeout": "Seconds that a reader may leave a full buffer untouched.",
    "keep_alive": "Seconds that an idle connection stays open.",
    "drain_timeout": "Seconds that running requests have after the first SIGTERM.",
    "stall_after": "Seconds of work without progress after which /health fails.",
    "prepare_threads": "Threads that parse, render and tokenize.",
}
ENGINE_FLAGS = {
    "max_num_seqs": "Sequences that run at the same time.",
    "max_num_batched_tokens": "Tokens a step; a long prompt is computed in chunks of it.",
    "long_prefill_token_threshold": "Tokens of one prompt a step while another is behind it; 0 is no cap.  "
    "[default: half of what is left, of prompts longer than a step]",
    "max_waiting": "Sequences that may wait for their turn; one more gets a 429.",
    "max_context": "Positions a sequence may have.  [default: the model's own limit]",
    "kv_dtype": "How the cache stores numbers, where the target has a choice.  [default: the target's]",
    "num_blocks": "KV blocks, instead of --kv-memory.  [default: worked out]",
    "watermark": "Share of the KV blocks that stays free when a sequence is admitted.",
    "max_draft_tokens": "Draft tokens a sequence and step.",
    "seed": "From which requests without a seed get theirs.  [default: a random one]",
    "sampler_threads": "Threads that share a step's sampling.",
}
_OPTIONAL: dict[str, Any] = {"kv_dtype": str}  # those of None that are not counts; all others are


def options() -> list[click.Option]:
    """The flags of both tables, in their order."""
    return [
        _flag(name, getattr(config, name), text)
        for config, table in ((ServerConfig(), SERVER_FLAGS), (EngineConfig(), ENGINE_FLAGS))
        for name, text in table.items()
    ]


def server_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Those values that are the server's."""
    return {name: values[name] for name in SERVER_FLAGS}


def engine_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Those values that are the engine's."""
    return {name: values[name] for name in ENGINE_FLAGS}


def known_settings() -> set[str]:
    """Every setting of both configurations."""
    return {it.name for config in (ServerConfig, EngineConfig) for it in fields(config)}


def _flag(name: str, default: Any, text: str) -> click.Option:
    kind: Any = _OPTIONAL.get(name)
    if kind is None:
        kind = click.FloatRange(min=0) if isinstance(default, float) else click.IntRange(min=0)
    flag = f"--{name.replace('_', '-')}"
    return click.Option([flag], default=default, type=kind, help=text, show_default=default is not None)
