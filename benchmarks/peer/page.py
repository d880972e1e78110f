"""The results as a page of tables, and its part in the docs."""

from __future__ import annotations

from typing import Any

from .best import Record, records
from .forms import CELLS, FORMS, PEERS
from .goal_tables import default_form, eight_bits, same_form
from .limit_tables import limits, machine, profiles
from .markdown import number, spread, table
from .measure import median
from .models import MODELS
from .onnx_tables import exported

BEGIN = "<!-- peers: the part up to the next mark is written by benchmarks/peers.py -->"
END = "<!-- end -->"
OF_SEVERAL = (
    "Of several settings the best one counts, cell by cell. Others: what other processes took of the machine "
    "meanwhile."
)


def page(data: dict[str, Any]) -> str:
    """All of it."""
    parts = [
        "# optpipe beside other runtimes",
        "Written by `benchmarks/peers.py`. Rates are tokens a second of all sequences together, medians; the "
        "best of the rounds in brackets. Greedy, EOS ignored; decoding begins after 128 tokens. Peers and "
        "optpipe ran in turn, cell by cell, with the same number of threads.",
        excerpt(data),
        *_every_peer(data),
        *_failures(data),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def excerpt(data: dict[str, Any]) -> str:
    """What docs/performance.md repeats: everything but each peer by itself."""
    parts = [
        *machine(data["machine"]),
        *same_form(data),
        *default_form(data),
        *eight_bits(data),
        *limits(data),
        *profiles(data),
        *exported(data),
        *_servers(data["servers"]),
    ]
    return "\n\n".join(part for part in parts if part)


def spliced(text: str, data: dict[str, Any]) -> str:
    """A page of the docs with a new excerpt between its marks."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n\n{excerpt(data)}\n\n{END}{rest.split(END)[1]}"


def _every_peer(data: dict[str, Any]) -> list[str]:
    """Each peer in each form at its best setting, cell by cell."""
    head = ["", "form", *(cell.name for cell in CELLS), "load s", "peak MB", "others"]
    parts = ["## Every peer and form", OF_SEVERAL]
    for model, it in MODELS.items():
        rows = []
        for peer in PEERS:
            mine = [record for name, record in records(data, model) if name == peer]
            for form in dict.fromkeys(record["form"] for record in mine):
                rows.append(_peer_row(peer, form, [it for it in mine if it["form"] == form]))
        if rows:
            parts += [f"### {it.text}", table(head, rows)]
    return parts


def _peer_row(peer: str, form: str, records: list[Record]) -> list[str]:
    best = [max((it["peer"][cell.name] for it in records), key=median) for cell in CELLS]
    others = max(it.get("others", 0.0) for it in records)
    load, peak = min(it["load_seconds"] for it in records), max(it["peak_mb"] for it in records)
    return [
        PEERS[peer].text,
        FORMS[form].text,
        *map(spread, best),
        f"{load:.1f}",
        f"{peak:,}",
        f"{others:.0%}",
    ]


def _servers(servers: dict[str, Any]) -> list[str]:
    if not servers:
        return []
    head = ["server", "form", "tokens/s", "TTFT p50 ms", "TPOT p50 ms", "TPOT p99 ms", "peak MB", ""]
    ours = next((it for it in servers.values() if it.get("ours")), {})
    rows = [_server_row(name, it, ours) for name, it in servers.items()]
    text = (
        "SmolLM2-135M, 16 concurrent requests in a closed loop, prompts of 128 to 512 tokens, answers of "
        "128; measured with `optpipe bench serve --url`. The goal is 5 times the tokens a second of each, "
        "and a p99 TPOT under 30 ms."
    )
    return ["## Servers", text, table(head, rows)]


def _server_row(name: str, found: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    if "failed" in found:
        return [name, found.get("form", ""), "", "", "", "", "", found["failed"]]
    rate = found["output_tokens_per_s"]
    said = ""
    if found.get("ours"):
        said = f"p99 TPOT {'reached' if found['tpot_ms']['p99'] < 30 else '**missed**'}"
    elif "output_tokens_per_s" in ours:
        ratio = ours["output_tokens_per_s"] / rate
        said = f"optpipe is {ratio:.1f} times as fast: {'reached' if ratio >= 5 else '**missed**'}"
    return [
        f"{name} {found['version']}",
        found["form"],
        number(rate),
        number(found["ttft_ms"]["p50"]),
        f"{found['tpot_ms']['p50']:.1f}",
        f"{found['tpot_ms']['p99']:.1f}",
        number(found["peak_rss_mb"] or 0),
        said,
    ]


def _failures(data: dict[str, Any]) -> list[str]:
    versions: dict[str, str] = {}
    failed = []
    for model, peers in data["runs"].items():
        for peer, variants in peers.items():
            for name, record in variants.items():
                if "failed" in record:
                    failed.append([MODELS[model].text, PEERS[peer].text, name, record["failed"]])
                else:
                    versions |= record["versions"]
    parts = ["## Versions", ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))]
    if failed:
        parts += ["## What did not run", table(["model", "peer", "variant", "reason"], failed)]
    return parts
