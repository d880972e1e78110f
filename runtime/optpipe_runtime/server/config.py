"""What a server allows. Every limit has a flag of `optpipe serve` with the same name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Names, keys and limits of one server.

    Attributes:
        model_name: what clients call the model.
        api_keys: keys that open every route; with none, every client is served.
        allowed_hosts: what the Host header may say, without the port; None for anything.
        max_body_bytes: of one request's body.
        max_header_bytes: of one request's line and headers.
        max_requests: requests in the server at once, waiting and running; more get a 429.
        max_prompts: prompts in one request of /v1/completions.
        max_prompt_tokens: of one prompt; None for what the model's context leaves.
        max_n: answers to one prompt.
        max_stop: stop strings, stop token ids or bad words of one request, each.
        max_logprobs: alternatives a token.
        max_bias: entries of logit_bias or allowed_token_ids.
        max_tools: tools of one request.
        request_timeout: seconds from a request's arrival to the end of its answer.
        header_timeout: seconds that a new connection has for the headers of its first request.
        body_timeout: seconds that a client has for its body.
        write_timeout: seconds that a reader may leave a full buffer untouched.
        keep_alive: seconds that an idle connection stays open.
        drain_timeout: seconds that running requests have after the first SIGTERM.
        stall_after: seconds of work without progress after which /health fails.
        prepare_threads: threads that parse, render and tokenize.
    """

    model_name: str = "model"
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = None
    max_body_bytes: int = 4 << 20
    max_header_bytes: int = 16 << 10
    max_requests: int = 512
    max_prompts: int = 128
    max_prompt_tokens: int | None = None
    max_n: int = 16
    max_stop: int = 16
    max_logprobs: int = 20
    max_bias: int = 1024
    max_tools: int = 128
    request_timeout: float = 600.0
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    write_timeout: float = 30.0
    keep_alive: float = 30.0
    drain_timeout: float = 30.0
    stall_after: float = 4.0
    prepare_threads: int = 2
