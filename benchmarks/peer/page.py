"""The results as a page of tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .forms import CELLS, ENGINE, FORMS, PEERS, PROMPT, Cell
from .goals import goal
from .measure import median
from .models import MODELS

Record = dict[str, Any]


@dataclass(frozen=True)
class Best:
    """The best peer of a cell, and ours beside it in the same run."""

    peer: str
    record: Record
    cell: str

    @property
    def rate(self) -> float:
        """The peer's median, tokens a second."""
        return median(self.record["peer"][self.cell])

    def ours(self, name: str) -> float:
        """The median of one of ours."""
        return median(self.record["ours"][name][self.cell])


def page(data: dict[str, Any]) -> str:
    """All of it."""
    parts = [
        "# optpipe beside other runtimes",
        "Written by `benchmarks/peers.py`. Rates are tokens a second of all sequences together, medians; the "
        "best of the rounds in brackets. Greedy, EOS ignored; decoding begins after 128 tokens. Peers and "
        "optpipe ran in turn, cell by cell, with the same number of threads.",
        *_machine(data["machine"]),
        *_same_form(data),
        *_default_form(data),
        *_eight_bits(data),
        *_limits(data),
        *_servers(data["servers"]),
        *_every_peer(data),
        *_failures(data),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def best_of(data: dict[str, Any], model: str, cell: str, eight_bits: bool) -> Best | None:
    """The fastest of all peers and their variants: of 8 bits, or of everything else."""
    found = [
        Best(peer, record, cell)
        for peer, record in _records(data, model)
        if peer != ENGINE and (record["form"] == "int8-8") is eight_bits
    ]
    return max(found, key=lambda it: it.rate, default=None)


def _records(data: dict[str, Any], model: str) -> Iterator[tuple[str, Record]]:
    for peer, variants in data["runs"].get(model, {}).items():
        for record in variants.values():
            if "failed" not in record:
                yield peer, record


def _machine(facts: dict[str, Any]) -> list[str]:
    if not facts:
        return []
    cache, memory = facts["last_level_cache_bytes"], facts["memory_bytes"]
    size = f"{cache / 2**20:.0f} MiB" if cache else "size unknown"
    used = f"{facts['cores']} cores, {facts['threads']} threads used"
    rows = [
        ["processor", f"{facts['cpu']}, {used}, {facts['isa']}"],
        ["last-level cache", f"{size}, {facts['cache_bytes_per_second'] / 1e9:.1f} GB/s"],
        ["memory", f"{memory / 2**30:.0f} GiB, {facts['memory_bytes_per_second'] / 1e9:.1f} GB/s"],
        ["products of 8-bit numbers", f"{facts['int8_operations_per_second'] / 1e9:,.0f} GOPS"],
        ["measured", facts["at"]],
    ]
    return ["## The machine", table(["", ""], rows)]


def _same_form(data: dict[str, Any]) -> list[str]:
    """Ours in the form of the best peer, with the goals."""
    parts = [
        "## The same form",
        "optpipe has the form of the best peer of the cell, its LM head's bits included, and rounds "
        "activations to 8 bits as the peers do. The bound is what optpipe's matrix products alone allow, run "
        "without the rest of the step in the same run. A goal is a multiple of the best peer or 75 % of the "
        "bound, whichever is less; for SmolLM2 at b=1 it is at least 60 % of the bound.",
    ]
    return parts + _goals(data, eight_bits=False)


def _eight_bits(data: dict[str, Any]) -> list[str]:
    parts = [
        "## 8 bits",
        "optpipe: int8 a channel. llama.cpp and OpenVINO: Q8_0, groups of 32. ONNX Runtime: blocks of 32.",
    ]
    return parts + _goals(data, eight_bits=True)


def _goals(data: dict[str, Any], eight_bits: bool) -> list[str]:
    head = ["", "best peer", "its form", "peer", "optpipe", "ratio", "bound", "of bound", "goal", ""]
    parts = []
    for model, it in MODELS.items():
        rows = []
        for cell in CELLS:
            best = best_of(data, model, cell.name, eight_bits)
            if best is not None:
                rows.append(_goal_row(model, cell.name, best))
        if rows:
            parts += [f"### {it.text}", table(head, rows)]
    return parts


def _goal_row(model: str, cell: str, best: Best) -> list[str]:
    name = next(iter(best.record["ours"]))
    ours, bound = best.ours(name), best.record["products"][name][cell]["rate"]
    wanted = goal(model, cell, best.rate, bound)
    return [
        cell,
        PEERS[best.peer].text,
        _form(best.record),
        _rate(best.record["peer"][cell]),
        _rate(best.record["ours"][name][cell]),
        f"{ours / best.rate:.2f}",
        number(bound),
        f"{ours / bound:.0%}",
        f"{number(wanted.rate)} ({wanted.why})",
        "reached" if wanted.reached(ours) else "**missed**",
    ]


def _form(record: Record) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in record["settings"].items())
    return FORMS[record["form"]].text + (f"; {settings}" if settings else "")


def _default_form(data: dict[str, Any]) -> list[str]:
    head = ["", "best peer", "peer", "optpipe, default", "ratio", "bound", "of bound"]
    parts = [
        "## Our default form",
        f"{FORMS['default'].text}; activations int16. The best peer is that of the table above.",
    ]
    for model, it in MODELS.items():
        rows = []
        for cell in CELLS:
            best = best_of(data, model, cell.name, False)
            name = "default, activations int16"
            if best is not None and name in best.record["ours"]:
                ours, bound = best.ours(name), best.record["products"][name][cell.name]["rate"]
                rates = [_rate(best.record["peer"][cell.name]), _rate(best.record["ours"][name][cell.name])]
                ratios = [f"{ours / best.rate:.2f}", number(bound), f"{ours / bound:.0%}"]
                rows.append([cell.name, PEERS[best.peer].text, *rates, *ratios])
        if rows:
            parts += [f"### {it.text}", table(head, rows)]
    return parts


def _limits(data: dict[str, Any]) -> list[str]:
    """Bytes and operations of each cell, and what the machine's limits make of them."""
    facts = data["machine"]
    if not facts:
        return []
    head = ["", "optpipe's form", "weights", "operations", "by memory", "by products", "alone", "whole step"]
    parts = [
        "## What limits a cell",
        "The weights that a step reads and the operations on 8-bit numbers that its matrix products do; the "
        "tokens a second that the machine's memory and its peak would allow for them (where the last-level "
        "cache holds a part of the weights, more is possible than by memory); what the products reach alone; "
        "and what the whole step reaches.",
    ]
    for model, it in MODELS.items():
        rows = []
        for cell in CELLS:
            for eight in (False, True):
                best = best_of(data, model, cell.name, eight)
                rows += [] if best is None else list(_limit_rows(facts, cell, best))
        if rows:
            parts += [f"### {it.text}", table(head, rows)]
    return parts


def _limit_rows(facts: dict[str, Any], cell: Cell, best: Best) -> Iterator[list[str]]:
    tokens = PROMPT if cell.steps == 0 else cell.batch
    for name, cells in best.record["products"].items():
        work = cells[cell.name]
        yield [
            cell.name,
            name,
            f"{work['bytes'] / 1e6:,.0f} MB",
            f"{work['operations'] / 1e9:,.1f} G",
            number(tokens * facts["memory_bytes_per_second"] / work["bytes"]),
            number(tokens * facts["int8_operations_per_second"] / work["operations"]),
            number(work["rate"]),
            number(best.ours(name)),
        ]


def _every_peer(data: dict[str, Any]) -> list[str]:
    """Each peer in each form at its best setting, cell by cell."""
    head = ["", "form", *(cell.name for cell in CELLS), "load s", "peak MB"]
    parts = ["## Every peer and form", "Of several settings the best one counts, cell by cell."]
    for model, it in MODELS.items():
        rows = []
        for peer in PEERS:
            records = [record for name, record in _records(data, model) if name == peer]
            for form in dict.fromkeys(record["form"] for record in records):
                rows.append(_peer_row(peer, form, [it for it in records if it["form"] == form]))
        if rows:
            parts += [f"### {it.text}", table(head, rows)]
    return parts


def _peer_row(peer: str, form: str, records: list[Record]) -> list[str]:
    best = [max((it["peer"][cell.name] for it in records), key=median) for cell in CELLS]
    load, peak = min(it["load_seconds"] for it in records), max(it["peak_mb"] for it in records)
    return [PEERS[peer].text, FORMS[form].text, *map(_rate, best), f"{load:.1f}", f"{peak:,}"]


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


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown; cells hold no pipes."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(it.replace("|", "/") for it in line) + " |" for line in lines)


def number(value: float) -> str:
    """Three digits and more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _rate(values: list[float]) -> str:
    return f"{number(median(values))} ({number(max(values))})"
