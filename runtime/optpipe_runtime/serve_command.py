"""``optpipe serve``: the OpenAI API over an artifact."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optpipe.cli import Command
from optpipe.cli.output import warn
from optpipe.errors import OptpipeError
from optpipe.plugins import hookimpl

from .target_options import given, target_options

if TYPE_CHECKING:
    from .engine import Engine
    from .server import ServerConfig
    from .server.listener import Listener

LOOPBACK = ("127.0.0.1", "::1", "localhost")
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


class ServeCommand(Command):
    """A command that also has a flag for every setting of the engine and the server."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The declared parameters and the settings, which are imported only when they are asked for."""
        from .server.options import options

        own = super().get_params(ctx)
        return [*own[:-2], *options(), *own[-2:]]  # --debug and --help stay last


@hookimpl
def optpipe_commands() -> Iterable[click.Command]:
    """Provide the command."""
    return [command]


@click.command(cls=ServeCommand, name="serve")
@click.argument("model")
@click.option("--host", default="127.0.0.1", help="The address to listen at.")
@click.option("--port", default=8000, type=click.IntRange(0, 65535), help="The port; 0 takes a free one.")
@click.option("--model-name", help="What clients call the model.  [default: the folder's name]")
@click.option(
    "--api-key",
    multiple=True,
    envvar="OPTPIPE_API_KEY",
    help="A key that opens every route; may be given again. The variable OPTPIPE_API_KEY is seen by fewer "
    "people than a command line.  [default: none]",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file of keys, one a line.  [default: none]",
)
@click.option(
    "--allowed-host",
    multiple=True,
    help="A name that the Host header may have; may be given again.  "
    "[default: the names of this machine's loopback when the server listens there, else any]",
)
@target_options
@click.option(
    "--passes", default=None, help="The pipeline, when MODEL has to be optimized first.  [default: paged]"
)
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model.")
@click.option(
    "--policy", default="fcfs", type=click.Choice(["fcfs", "priority"]), help="Who is admitted first."
)
@click.option(
    "--prefix-caching/--no-prefix-caching", default=True, help="Find the beginnings of prompts in the cache."
)
@click.option(
    "--speculation", default="none", help="Who drafts tokens: none, ngram, suffix, draft or layers."
)
@click.option(
    "--draft-model", default=None, help="With draft: an artifact of the same vocabulary.  [default: none]"
)
@click.option(
    "--draft-layers",
    type=int,
    default=None,
    help="With layers: how many of the model's first layers draft.  [default: half of them]",
)
@click.option("--kv-memory", default="0.5", help="For the KV cache: 2GiB, 512M, or a share of free memory.")
@click.option(
    "--otlp-traces-endpoint",
    default=None,
    help="Send a span a request to this OpenTelemetry collector, such as http://localhost:4318/v1/traces.  "
    "[default: none]",
)
@click.option(
    "--log-format", default="text", type=click.Choice(["text", "json"]), help="How the log is written."
)
@click.option(
    "--log-level",
    default="info",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What is logged.",
)
def command(model: str, **options: Any) -> int:
    """Serve an artifact with the OpenAI API.

    MODEL is an artifact's folder, or a model as `optpipe optimize` takes it, which is optimized first.
    """
    _check_packages()
    from .server import create_app
    from .server.listener import Listener
    from .server.logs import set_up
    from .server.tracing import export_to

    config = _server_config(model, options)
    with _open(model, options) as engine:
        set_up(options["log_format"], options["log_level"])  # what the engine has logged so far is said below
        endpoint = options["otlp_traces_endpoint"]
        traces = None if endpoint is None else export_to(endpoint)
        app = create_app(engine, config, traces=traces)
        _introduce(engine, config, options["host"])
        listener = Listener(app, config, options["host"], options["port"], _say_where(options["host"]))
        gc.collect()
        gc.freeze()  # what is here now stays, so that the collector need not look at it again
        _run(listener, options)
    if traces is not None:
        traces.shutdown()  # sends what is left
    return 1 if listener.force_exit or listener.signals > 1 else 0


def _check_packages() -> None:
    missing = [it for it in NEEDED if importlib.util.find_spec(it) is None]
    if missing:
        raise OptpipeError(
            f"Serving needs the package '{missing[0]}'.", hint="pip install 'optpipe[serve]' brings it"
        )


def _server_config(model: str, options: dict[str, Any]) -> ServerConfig:
    """The server's settings, with keys from wherever they are given."""
    from .server import ServerConfig
    from .server.options import server_settings

    keys = [*options["api_key"], *_keys_in(options["api_key_file"])]
    local = options["host"] in LOOPBACK
    hosts = {it.lower() for it in options["allowed_host"]} or (set(LOOPBACK) if local else None)
    return ServerConfig(
        model_name=options["model_name"] or Path(model).name or model,
        api_keys=tuple(keys),
        allowed_hosts=None if hosts is None else tuple(sorted(hosts)),
        **server_settings(options),
    )


def _keys_in(path: Path | None) -> list[str]:
    if path is None:
        return []
    keys = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not keys:
        raise OptpipeError(f"'{path}' holds no API key.", hint="one key a line")
    return keys


def _open(model: str, options: dict[str, Any]) -> Engine:
    """The engine; time limits are the server's, so that a client hears of them in its own words."""
    from .engine import Engine, EngineConfig
    from .engine.config import parse_memory
    from .server.options import engine_settings
    from .shortcut import artifact_of

    config = EngineConfig(
        policy=options["policy"],
        prefix_caching=options["prefix_caching"],
        kv_memory=parse_memory(options["kv_memory"]),
        speculation=options["speculation"],
        draft_model=options["draft_model"],
        draft_layers=options["draft_layers"],
        request_timeout=None,
        stall_timeout=options["stall_after"],
        **engine_settings(options),
    )
    folder = artifact_of(
        model,
        passes=options["passes"],
        trust_remote_code=options["trust_remote_code"],
        say=lambda text: click.echo(f"note: {text}", err=True),
    )
    return Engine(folder, options["target"], config=config, **given(options))


def _introduce(engine: Engine, config: ServerConfig, host: str) -> None:
    """Say what is served, from which memory, and to whom."""
    _line("model", f"{config.model_name}, contexts of {engine.context_length} tokens")
    tokens, sequences = engine.config.max_num_batched_tokens, engine.config.max_num_seqs
    _line(*str(engine.memory).split(": ", 1))
    _line("steps", f"{sequences} sequences at once, {tokens} tokens a step")
    count = len(config.api_keys)
    keys = "one key" if count == 1 else f"{count} keys"
    who = f"holders of {keys}" if count else "everybody who reaches it"
    _line("open to", who)
    if not config.api_keys and host not in LOOPBACK:
        warn(f"whoever reaches {host} can use this server; --api-key-file asks for a key")


def _line(label: str, text: str) -> None:
    click.echo(f"{click.style(label + ':', bold=True)} {text}", err=True)


def _say_where(host: str) -> Callable[[int], None]:
    def started(port: int) -> None:
        place = f"[{host}]" if ":" in host else host
        _line("listening", f"http://{place}:{port} (Ctrl-C drains, twice stops)")

    return started


def _run(listener: Listener, options: dict[str, Any]) -> None:
    try:
        listener.run()
    except SystemExit as error:  # uvicorn's word for a port that is taken
        raise OptpipeError(
            f"The server cannot listen at {options['host']} port {options['port']}.",
            hint="is the port in use? --port 0 takes a free one",
        ) from error
