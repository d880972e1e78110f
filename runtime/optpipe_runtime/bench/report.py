"""What a run prints: JSON with the same keys for every kind of run, or a table."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import optpipe
from optpipe.cli.output import print_json, print_table

from .load import Load
from .slo import Slo
from .statistics import measure

ROWS = {"TTFT": "ttft_ms", "TPOT": "tpot_ms", "ITL": "itl_ms", "E2E": "e2e_ms"}
COLUMNS = ("mean", "p50", "p90", "p99")
LATE_MS = 5.0  # above this at the 99th percentile, the generator's own lateness is worth a word
BUSY_SHARE = 0.5  # of one core


def environment() -> dict[str, Any]:
    """The machine and the versions that a run is about."""
    from optpipe.cli.doctor import cpu

    processor = cpu(Path("/proc/cpuinfo"))
    return {
        "optpipe": optpipe.__version__,
        "python": platform.python_version(),
        "processor": processor["model"],
        "cores": processor["cores"],
    }


def result(
    kind: str,
    load: Load,
    slo: Slo,
    *,
    settings: Mapping[str, Any],
    warmup: int,
    peak_rss_mb: float | None,
    generator: bool = False,
) -> dict[str, Any]:
    """The whole of what is known about a run.

    Args:
        warmup: requests that were sent before and do not count.
        generator: the load came from this process and the server is another, so that what this one took says
            whether it was the bottleneck.
    """
    return {
        "kind": kind,
        **measure(load.records, load.seconds, slo),
        "generator_share": load.processor_seconds / load.seconds if generator else None,
        "peak_rss_mb": peak_rss_mb,
        "warmup": warmup,
        "settings": {**settings, "slo": slo.to_json(), "environment": environment()},
    }


def show(found: Mapping[str, Any], as_json: bool) -> int:
    """Print it; the exit code says whether any request was answered."""
    if as_json:
        print_json(found)
    else:
        _print(found)
    for text in warnings(found):
        click.echo(f"warning: {text}", err=True)
    return 0 if found["requests"]["answered"] else 1


def warnings(found: Mapping[str, Any]) -> list[str]:
    """What makes the numbers less than they seem."""
    said = [f"{count} requests failed: {text}" for text, count in found["requests"]["errors"].items()]
    tokens = found["tokens"]
    if tokens["output"] < tokens["output_asked"]:
        said.append(f"answers were shorter than asked: {tokens['output']} of {tokens['output_asked']} tokens")
    if "chunks" in tokens["counted_by"]:
        said.append("output tokens are counted by chunks; a chunk may hold several")
    late = found["late_ms"]["p99"]
    if found["settings"].get("concurrency") is None and late is not None and late > LATE_MS:
        said.append(f"requests were sent late, by {late:.1f} ms at p99: the generator could not keep up")
    if (found["generator_share"] or 0) > BUSY_SHARE:
        said.append(f"the generator took {found['generator_share']:.0%} of a core")
    return said


def _print(found: Mapping[str, Any]) -> None:
    rows = [(name, *(number(found[key][column]) for column in COLUMNS)) for name, key in ROWS.items()]
    print_table(["ms", *COLUMNS], rows, right=COLUMNS)
    requests, tokens = found["requests"], found["tokens"]
    click.echo(
        f"requests: {requests['answered']} answered, {requests['failed']} failed, in "
        f"{found['seconds']:.2f} s ({found['warmup']} before them to warm up are not counted)"
    )
    click.echo(
        f"tokens a second: {number(found['prompt_tokens_per_s'])} of prompts, "
        f"{number(found['output_tokens_per_s'])} of output (counted by "
        f"{' and '.join(tokens['counted_by']) or 'nobody'})"
    )
    limits = ", ".join(f"{key} {value:g}" for key, value in found["settings"]["slo"].items())
    click.echo(
        f"requests a second: {number(found['requests_per_s'], 2)}, good ones "
        f"{number(found['goodput_rps'], 2)} ({limits or 'no limits stated'})"
    )
    for key in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        if key in found:
            click.echo(f"{key.split('_')[0]} tokens a second: {number(found[key])}")
    if found["peak_rss_mb"] is not None:
        click.echo(f"peak memory: {found['peak_rss_mb']:.0f} MB")


def number(value: float | None, digits: int = 1) -> str:
    """A number for a table; a dash where there is none.

    >>> number(1234.5), number(None), number(3.14159, 2)
    ('1,234.5', '—', '3.14')
    """
    return "—" if value is None else f"{value:,.{digits}f}"
