"""optpipe's cpu target beside other runtimes: the same models, the same threads, measured in turn.

    python benchmarks/peers.py                                    everything: hours, 30 GB of disk
    python benchmarks/peers.py run --model smollm2 --peer llama.cpp --rounds 5
    python benchmarks/peers.py prepare --model smollm2            installs and conversions only
    python benchmarks/peers.py serve --server llama-server        over HTTP
    python benchmarks/peers.py page                               the tables again, from the JSON

Each peer is installed into a virtual environment of its own and runs in a process of its own; models are
converted from one source. Environments and models are kept under --cache. Every run adds to
benchmarks/results/peers-PROCESSOR.json and writes the page beside it. Measure on a machine that does nothing
else.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peer import http, page
from peer.forms import PEERS, Peer, Variant
from peer.measure import DriverError, Ours, compare, our_driver
from peer.models import MODELS, ConvertError, Shelf
from peer.results import Results, machine_facts, results_path
from peer.venvs import InstallError, python

DOCS = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
PARTS = ("all", "prepare", "machine", "run", "serve", "page")


def main() -> int:
    arguments = _arguments()
    cache: Path = arguments.cache
    isa = _isa()
    results = Results(results_path(isa))
    part = arguments.part
    if part in ("all", "prepare"):
        prepare(cache, arguments)
    if part in ("all", "machine"):
        machine(cache, results)
    if part in ("all", "run"):
        run(cache, results, arguments)
    if part in ("all", "serve"):
        http.measure(cache, results, arguments.server or list(http.SERVERS))
    text = page.page(results.data)
    results.path.with_suffix(".md").write_text(text)
    DOCS.write_text(page.spliced(DOCS.read_text(), results.data))
    print(text)
    return 0


def prepare(cache: Path, arguments: argparse.Namespace) -> None:
    """Install peers and convert models; what fails is said and left."""
    for name, peer in _chosen(arguments):
        try:
            _python(cache, peer)
        except InstallError as error:
            _say(f"{name}: {error}")
            continue
        for model in arguments.model or MODELS:
            for form in {it.form for it in _variants(peer, arguments)}:
                try:
                    _say(f"{name}, {model}: {Shelf(cache, MODELS[model]).of_kind(peer.kind, form)}")
                except (ConvertError, InstallError) as error:
                    _say(f"{name}, {model}, {form}: {error}")


def machine(cache: Path, results: Results) -> None:
    """The machine's limits."""
    driver = our_driver(Shelf(cache, MODELS["smollm2"]), Ours("int4-8", "int8"))
    try:
        measured, isa = driver.ask("machine"), driver.ask("facts")["isa"]
    finally:
        driver.close()
    measured.pop("peak_mb")
    results.data["machine"] = machine_facts(measured, isa)
    results.write()


def run(cache: Path, results: Results, arguments: argparse.Namespace) -> None:
    """Measure the chosen peers on the chosen models; what fails is recorded with its reason."""
    for model in arguments.model or MODELS:
        for name, peer in _chosen(arguments):
            for variant in _variants(peer, arguments):
                _say(f"{model}: {name}, {variant.name}")
                try:
                    shelf, interpreter = Shelf(cache, MODELS[model]), _python(cache, peer)
                    found = compare(shelf, peer, variant, interpreter, arguments.rounds)
                except (InstallError, ConvertError, DriverError) as error:
                    found = {"form": variant.form, "settings": variant.settings, "failed": str(error)}
                    _say(f"  {error}")
                results.record(model, name, variant.name, found)


def _chosen(arguments: argparse.Namespace) -> Iterator[tuple[str, Peer]]:
    for name in arguments.peer or PEERS:
        yield name, PEERS[name]


def _variants(peer: Peer, arguments: argparse.Namespace) -> list[Variant]:
    return [it for it in peer.variants if arguments.variant in it.name]


def _python(cache: Path, peer: Peer) -> Path | str:
    return python(cache, peer.venv) if peer.venv else sys.executable


def _isa() -> str:
    from optpipe_kernels.cpu.library import library

    return str(library().isa)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", default="all", choices=PARTS)
    parser.add_argument(
        "--model", action="append", choices=list(MODELS), help="only this one; may be repeated"
    )
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="only this one; may be repeated")
    parser.add_argument("--variant", default="", help="only variants whose name has this in it")
    parser.add_argument("--server", action="append", choices=list(http.SERVERS), help="only this one")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of a cell (default 5)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optpipe-peers"
    parser.add_argument(
        "--cache", type=Path, default=cache, help="environments and models (default %(default)s)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
