"""``optpipe bench serve``: a server under load, ours in a process of its own or anybody's at a URL."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optpipe.errors import EngineError, RequestError

from .http_client import HttpClient
from .http_stream import Server, get_json, parse_url
from .load import ClientError, Load
from .memory import peak_rss_mb
from .opening import make_requests, make_workload, open_folder, open_tokenizer
from .runs import Progress, run_requests
from .server_process import ServerProcess, optpipe_serve, serve

Options = Mapping[str, Any]


def measure_server(model: str | None, options: Options, on_end: Progress) -> tuple[Load, float | None, str]:
    """Send the load that the options say; what came of it, the server's peak memory in MB, the model's name.

    Raises:
        EngineError: the server does not start, or does not answer.
    """
    if model is None and options["url"] is None:
        raise RequestError("There is nothing to measure.", hint="name an artifact, or a server with --url")
    folder = None if model is None else _folder(model, options["url"])
    tokenizer = None if folder is None or _as_text(options) else open_tokenizer(folder)
    requests, warm = make_requests(make_workload(options, tokenizer), options)
    with _server(folder, options) as process:
        server = parse_url(process.url, options["api_key"])
        name = options["served_model"] or asyncio.run(_first_model(server, process.url))
        client = HttpClient(
            server, name, options["endpoint"], options["count"], ignore_eos=options["ignore_eos"]
        )
        load = asyncio.run(
            run_requests(
                client,
                requests,
                warm,
                concurrency=options["concurrency"],
                timeout=options["timeout"],
                on_end=on_end,
            )
        )
        known = process.pid if process.pid > 0 else options["pid"]
        return load, None if known is None else peak_rss_mb(known, children=True), name


def _folder(model: str, url: str | None) -> Path:
    """With a URL the artifact only lends its tokenizer, so that any model's folder does."""
    return Path(model) if url is not None and Path(model).is_dir() else open_folder(model)


def _as_text(options: Options) -> bool:
    """Whether prompts go as text: a chat has no other form."""
    if options["endpoint"] == "chat" and options["random_ids"]:
        raise RequestError("A chat takes text, so --random-ids needs --endpoint completions.")
    return bool(options["endpoint"] == "chat")


@contextlib.contextmanager
def _server(folder: Path | None, options: Options) -> Iterator[ServerProcess]:
    """The server at the URL, whose process is not known, or one of ours."""
    if options["url"] is not None:
        yield ServerProcess(options["url"], 0)
        return
    assert folder is not None, "without a URL there is an artifact"
    wanted = ["--target", options["target"], *shlex.split(options["server_args"])]
    with serve(optpipe_serve(str(folder), wanted), timeout=options["start_timeout"]) as process:
        print(f"note: serving at {process.url}", file=sys.stderr)
        yield process


async def _first_model(server: Server, url: str) -> str:
    """The model that a server names first."""
    try:
        async with asyncio.timeout(30):
            listed = await get_json(server, "/models")
        return str(listed["data"][0]["id"])
    except (ClientError, OSError, TimeoutError) as error:
        raise EngineError(f"The server at {url} does not answer: {error or 'no answer in 30 s'}.") from error
    except (KeyError, IndexError, TypeError):
        raise EngineError(
            f"The server at {url} names no model.", hint="say which with --served-model"
        ) from None
