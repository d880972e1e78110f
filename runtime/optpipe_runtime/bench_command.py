"""``optpipe bench``: latency, throughput, a server under load, and the start of a process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from optpipe.cli import Command, json_option
from optpipe.plugins import hookimpl

from .bench import options as flags

if TYPE_CHECKING:
    from .bench.load import Load


@hookimpl
def optpipe_commands() -> Iterable[click.Command]:
    """Provide the command."""
    return [command]


@click.group(name="bench")
def command() -> None:
    """Measure how fast an artifact, or any server, answers.

    TTFT is the first token's time less the arrival's, TPOT the time per token behind the first, ITL the gaps
    between chunks, E2E the last token's time less the arrival's; goodput counts the requests a second that
    meet every limit of --slo. What warms up is not counted.
    """


@command.command(cls=Command)
@click.argument("model")
@flags.lengths("512", "128")
@click.option("--batch-size", default=1, type=flags.COUNT, help="Requests at the same time.")
@click.option("--repeats", default=5, type=flags.COUNT, help="Batches that are measured.")
@click.option("--warmup", default=1, type=click.IntRange(min=0), help="Batches before, not counted.")
@flags.prompts()
@flags.engine()
@flags.report()
def latency(model: str, as_json: bool, **options: Any) -> int:
    """Measure one batch at a time, in this process.

    The prompts of a batch arrive together and are all different; nothing is found in the prefix cache.
    """
    import asyncio

    from optpipe.cli.output import progress

    from .bench import opening
    from .bench.engine_client import EngineClient
    from .bench.lengths import parse_lengths
    from .bench.memory import peak_rss_mb
    from .bench.runs import run_batches

    slo = _checked(options)
    length = sum(parse_lengths(options[f"{side}_len"], side).most for side in ("input", "output"))
    size = options["batch_size"]
    with opening.open_engine(model, options, sequences=size, length=length, prefixes=False) as engine:
        workload = opening.make_workload(options, engine.tokenizer, engine.vocab_size)
        with progress() as report:
            batches = asyncio.run(
                run_batches(
                    EngineClient(engine, ignore_eos=options["ignore_eos"]),
                    workload,
                    size=size,
                    repeats=options["repeats"],
                    warmup=options["warmup"],
                    on_end=lambda ended, total: report("batches", ended, total),
                )
            )
        facts = {"model": model, **options}
        warmup = options["warmup"] * size
        return _finish(
            "latency", batches.load, slo, facts, warmup, peak_rss_mb(), as_json, more=batches.to_json()
        )


@command.command(cls=Command)
@click.argument("model")
@flags.lengths("chat", "chat")
@flags.workload(64)
@flags.prompts()
@flags.engine()
@click.option("--max-num-seqs", default=64, type=flags.COUNT, help="Sequences that run at the same time.")
@click.option(
    "--prefix-caching/--no-prefix-caching", default=True, help="Find the beginnings of prompts in the cache."
)
@flags.report()
def throughput(model: str, as_json: bool, **options: Any) -> int:
    """Measure many requests at once, in this process.

    All arrive at the beginning unless --rate, --concurrency or --trace say otherwise; a TTFT has the time in
    the queue.
    """
    import asyncio

    from optpipe.cli.output import progress

    from .bench import opening
    from .bench.engine_client import EngineClient
    from .bench.memory import peak_rss_mb
    from .bench.runs import run_requests

    slo = _checked(options)
    sequences, prefixes = options["max_num_seqs"], options["prefix_caching"]
    with opening.open_engine(model, options, sequences=sequences, length=None, prefixes=prefixes) as engine:
        workload = opening.make_workload(options, engine.tokenizer, engine.vocab_size)
        requests, warm = opening.make_requests(workload, options)
        with progress() as report:
            load = asyncio.run(
                run_requests(
                    EngineClient(engine, ignore_eos=options["ignore_eos"]),
                    requests,
                    warm,
                    concurrency=options["concurrency"],
                    timeout=options["timeout"],
                    on_end=lambda ended, total: report("requests", ended, total),
                )
            )
        facts = {"model": model, **options, "arrivals": str(opening.make_arrivals(options))}
        return _finish("throughput", load, slo, facts, len(warm), peak_rss_mb(), as_json)


@command.command(cls=Command)
@click.argument("model", required=False)
@click.option("--url", help="A server to measure, such as http://127.0.0.1:8000.  [default: one of MODEL]")
@click.option(
    "--endpoint",
    default="completions",
    type=click.Choice(["completions", "chat"]),
    help="What requests are sent to; a chat takes prompts of text only.",
)
@click.option("--served-model", help="The model that requests name.  [default: the server's first]")
@click.option(
    "--api-key", envvar="OPTPIPE_API_KEY", help="The server's key; or OPTPIPE_API_KEY.  [default: none]"
)
@click.option(
    "--count",
    default="usage",
    type=click.Choice(["usage", "chunks"]),
    help="Count output tokens by the usage that the server sends, or by chunks, one each.",
)
@click.option("--pid", type=flags.COUNT, help="The process behind --url, for its memory.  [default: unknown]")
@click.option("--target", default="auto", help="The target of the server that is started.")
@click.option("--server-args", default="", help='More options of that `optpipe serve`: "--max-num-seqs 16".')
@click.option(
    "--start-timeout", default=600.0, type=flags.POSITIVE, help="Seconds that the server has for its start."
)
@flags.lengths("chat", "chat")
@flags.workload(64)
@flags.prompts()
@flags.report()
def serve(model: str | None, as_json: bool, **options: Any) -> int:
    """Measure a server over HTTP, with streamed answers.

    Without --url, MODEL is served by a process of its own for the time of the run. With --url, any server of
    the OpenAI API is measured, and MODEL lends its tokenizer so that prompts have exact lengths; without
    MODEL they are text of about the wanted length. Requests are timed from their planned arrival.
    """
    from optpipe.cli.output import progress

    from .bench import opening
    from .bench.serve_run import measure_server

    slo = _checked(options)
    with progress() as report:
        load, memory, name = measure_server(
            model, options, lambda ended, total: report("requests", ended, total)
        )
    key = options.pop("api_key")
    facts = {"model": model, **options, "served_model": name, "with_api_key": key is not None}
    facts["arrivals"] = str(opening.make_arrivals(options))
    return _finish("serve", load, slo, facts, options["warmup"], memory, as_json, generator=True)


@command.command(cls=Command)
@click.argument("model")
@click.option("--prompt", default="The capital of France is", help="What is continued by one token.")
@click.option("--runs", default=5, type=flags.COUNT, help="Processes that are measured.")
@click.option("--warmup", default=1, type=click.IntRange(min=0), help="Processes before, not counted.")
@click.option("--target", default="auto", help="The target that runs the artifact.")
@json_option
def startup(model: str, prompt: str, runs: int, warmup: int, target: str, as_json: bool) -> None:
    """Measure `optpipe generate` from the start of its process to the first token.

    Files and packed weights are in the caches after the warm-up, as they are for whoever uses a model again.
    """
    from optpipe.cli.output import print_json, progress

    from .bench.opening import open_folder
    from .bench.report import environment
    from .bench.startup import measure_startup

    arguments = [str(open_folder(model)), prompt, "--raw", "--max-tokens", "1", "--target", target]
    with progress() as report:
        found = measure_startup(
            arguments,
            runs=runs,
            warmup=warmup,
            on_end=lambda ended, total: report("processes", ended, total),
        )
    found["settings"] = {"model": model, "prompt": prompt, "target": target, "environment": environment()}
    if as_json:
        print_json(found)
    else:
        _print_startup(found)


def _checked(options: Mapping[str, Any]) -> Any:
    """The limits; what can be wrong is found before the run."""
    from .bench.slo import parse_slo

    if options["plot"] is not None:
        from .bench.plot import check

        check(options["plot"])
    return parse_slo(options["slo"])


def _finish(
    kind: str,
    load: Load,
    slo: Any,
    facts: Mapping[str, Any],
    warmup: int,
    memory: float | None,
    as_json: bool,
    *,
    more: Mapping[str, Any] | None = None,
    generator: bool = False,
) -> int:
    """Print the result and draw it; the exit code."""
    from .bench.report import result, show

    settings = json.loads(
        json.dumps({k: v for k, v in facts.items() if k not in ("slo", "plot")}, default=str)
    )
    found = result(
        kind, load, slo, settings=settings, warmup=warmup, peak_rss_mb=memory, generator=generator
    ) | dict(more or {})
    code = show(found, as_json)
    if facts["plot"] is not None:
        from .bench.plot import draw

        draw(facts["plot"], load.records, found)
    return code


def _print_startup(found: Mapping[str, Any]) -> None:
    from optpipe.cli.output import print_table

    from .bench.report import number

    rows = [*found["phases_ms"].items(), ("total", found["total_ms"])]
    print_table(
        ["phase", "min ms", "median ms"],
        [(name.replace("_", " "), number(it["min"]), number(it["median"])) for name, it in rows],
        right=["min ms", "median ms"],
    )
    memory = found["peak_rss_mb"]
    click.echo(f"peak memory: {memory['min']:.0f} MB, median {memory['median']:.0f} MB")
    click.echo(f"runs: {found['runs']} ({found['warmup']} before them to warm up are not counted)")
    click.echo(f"heavy packages imported: {', '.join(found['imported']) or 'none'}")
