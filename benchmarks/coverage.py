"""Which of transformers' causal language models optpipe takes: every entry of its mapping, tried.

    python benchmarks/coverage.py                 try all; write the table and docs/coverage.md
    python benchmarks/coverage.py --only llama    try some, compare with the table
    python benchmarks/coverage.py --sample 12     try a sample that changes daily (--seed repeats one)
    python benchmarks/coverage.py --onnx          try the ONNX export alone, of verified entries; note it
    python benchmarks/coverage.py --page          write docs/coverage.md again from the JSON

Each entry is a tiny random model that goes through ``optpipe.optimize`` as a user's would, with every
check: the graph against the model's own eager code, each pass against the graph before it, and packed,
chunked and interleaved sequences against each sequence alone, in float32 and float64. An entry that is not
verified says why in one line. A verified one is exported to ONNX, and ONNX Runtime's logits are compared with
the reference's. Worker processes handle the entries, so that one that crashes, hangs or eats
memory costs itself only. Exits 1 when an entry that the table calls verified no longer is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import queue
import random
import select
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent
TABLE = HOME / "results" / "coverage.json"
PAGE = HOME.parent / "docs" / "coverage.md"
WORKER = HOME / "coverage_worker.py"
WORKERS = 2
SECONDS = 240.0  # an entry may take; the slowest takes a fifth of it on two cores
ENTRIES_A_WORKER = 25  # then a fresh one: torch keeps what it has compiled
AGREES = "agrees"
FUSIONS = {
    "fuse-rope": "rope",
    "fuse-rms-norm": "rms norm",
    "fuse-add-rms-norm": "add + rms norm",
    "fuse-layer-norm": "layer norm",
    "fuse-gated-act": "gated act",
    "paged": "attention",
}


@dataclass
class Entry:
    """What became of one model type.

    Attributes:
        name: transformers' model type.
        model: the class that was built, the text part's where a model has several; empty if none was.
        traced, rewritten, verified: how far it came.
        reason: why no further, in one line; empty for a verified one.
        rewrites: pass → rewrites it made, fusions only.
        missed: pass → rewrites it left.
        onnx: "agrees" when ONNX Runtime's logits are the reference's, else why not in one line; empty when it
            was not tried.
    """

    name: str
    model: str = ""
    traced: bool = False
    rewritten: bool = False
    verified: bool = False
    reason: str = ""
    rewrites: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    onnx: str = ""


class Worker:
    """One process that is given names and gives entries."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._handled = 0

    def run(self, name: str) -> Entry:
        if self._process is None or self._handled >= ENTRIES_A_WORKER:
            self.stop()
            self._process = subprocess.Popen(
                [sys.executable, str(WORKER), *self._options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._handled = 0
        self._handled += 1
        pipe = self._process
        assert pipe.stdin is not None and pipe.stdout is not None, "both pipes were asked for"
        pipe.stdin.write(f"{name}\n")
        pipe.stdin.flush()
        ready, _, _ = select.select([pipe.stdout], [], [], SECONDS)
        line = pipe.stdout.readline() if ready else ""
        if line:
            return Entry(**json.loads(line))
        self.stop()
        reason = "its process ended" if ready else f"it took longer than {SECONDS:.0f} s"
        return Entry(name, reason=reason)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def try_all(names: list[str], *options: str, workers: int = WORKERS) -> list[Entry]:
    """The entries of ``names``, in their order.

    Args:
        options: of the workers.
        workers: how many.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)
    found: dict[str, Entry] = {}

    def work() -> None:
        worker = Worker(*options)
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                worker.stop()
                return
            found[name] = entry = worker.run(name)
            said = entry.reason or (f"verified; ONNX: {entry.onnx}" if entry.onnx else "verified")
            line = f"{len(found):3}/{len(names)} {name}: {said}"
            print(line, file=sys.stderr, flush=True)

    threads = [threading.Thread(target=work) for _ in range(min(workers, len(names)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[name] for name in names]


def compare(found: list[Entry], table: dict[str, Entry]) -> list[str]:
    """Regressions, one line each; improvements and changed reasons are printed."""
    lost = []
    for entry in found:
        known = table.get(entry.name)
        if known is None or known == entry:
            continue
        if known.verified and not entry.verified:
            lost.append(f"{entry.name} was verified, and now: {entry.reason}")
        elif known.onnx == AGREES and entry.verified and entry.onnx != AGREES:
            lost.append(f"{entry.name} agreed in ONNX, and now: {entry.onnx}")
        elif known.verified and known.rewrites != entry.rewrites:
            lost.append(f"{entry.name} had rewrites {known.rewrites}, and now {entry.rewrites}")
        else:
            print(f"{entry.name}: {known.reason or 'verified'} → {entry.reason or 'verified'}")
    return lost


def read_table() -> dict[str, Entry]:
    if not TABLE.exists():
        return {}
    return {row["name"]: Entry(**row) for row in json.loads(TABLE.read_text())["entries"]}


def write_table(entries: list[Entry]) -> None:
    import torch
    import transformers

    content = {
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "verified": sum(entry.verified for entry in entries),
        "onnx": sum(entry.onnx == AGREES for entry in entries),
        "entries": [asdict(entry) for entry in sorted(entries, key=lambda entry: entry.name.lower())],
    }
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(json.dumps(content, indent=1) + "\n")
    PAGE.write_text(page(content))


def page(content: dict[str, Any]) -> str:
    """docs/coverage.md."""
    entries = [Entry(**row) for row in content["entries"]]
    verified = [entry for entry in entries if entry.verified]
    lines = [
        "# Which models",
        "",
        "<!-- Generated by benchmarks/coverage.py; do not edit. -->",
        "",
        f"Of the {len(entries)} model types in the causal-LM mapping of transformers "
        f"{content['transformers']}, {len(verified)} are verified (torch {content['torch']}). Each was tried "
        "as a tiny random model with at least two layers of every kind it has, through the same code as "
        "`optpipe optimize` with the default pipeline: its graph equals the model's own eager code, every "
        "pass keeps its contract, and packed, chunked and interleaved sequences equal each sequence alone, "
        "in float32 and in float64. A model of several parts (text and images) is taken as its text part, "
        "the decoder of an encoder-decoder model as what it is without its encoder.",
        "",
        "## Verified",
        "",
        "The columns count the operations of the tiny model that each fusion made. The last one is `--target "
        "onnx`: the logits of a prompt in pieces, by ONNX Runtime on a CPU, have a KL divergence "
        f"below 1e-3 from the reference's in float32; {sum(it.onnx == AGREES for it in verified)} of "
        f"{len(verified)} do.",
        "",
        f"| model type | class | {' | '.join(FUSIONS.values())} | ONNX |",
        f"| --- | --- | {' | '.join(['--:'] * len(FUSIONS))} | --- |",
    ]
    for entry in verified:
        counts = " | ".join(str(entry.rewrites.get(name, "")) for name in FUSIONS)
        lines.append(f"| {entry.name} | {entry.model} | {counts} | {entry.onnx} |")
    lines += ["", "## Refused", "", "| model type | traced | rewritten | why |", "| --- | --- | --- | --- |"]
    for entry in entries:
        if not entry.verified:
            steps = " | ".join("yes" if done else "no" for done in (entry.traced, entry.rewritten))
            lines.append(f"| {entry.name} | {steps} | {entry.reason} |")
    return "\n".join(lines) + "\n"


def only_onnx(names: list[str], table: dict[str, Entry], workers: int) -> int:
    """Put the ONNX column of some verified entries into the table."""
    lost = 0
    for entry in try_all(names, "--onnx", workers=workers):
        known = table[entry.name]
        lost += known.onnx == AGREES and entry.onnx != AGREES
        known.onnx = entry.onnx or entry.reason
    write_table(list(table.values()))
    print(f"{sum(table[name].onnx == AGREES for name in names)} of {len(names)} agree in ONNX")
    return 1 if lost else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="model types to try, joined by commas")
    parser.add_argument("--sample", type=int, help="try as many, drawn at random")
    parser.add_argument("--seed", type=int, help="of the sample; today's number when not given")
    parser.add_argument("--workers", type=int, default=WORKERS, help="processes (default %(default)s)")
    parser.add_argument("--write", action="store_true", help="put what was found into the table")
    parser.add_argument("--onnx", action="store_true", help="only the ONNX export, of verified entries")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    return parser.parse_args()


def main() -> int:
    from optpipe.testing import mapping_names

    options = arguments()
    if options.page:
        PAGE.write_text(page(json.loads(TABLE.read_text())))
        return 0
    names, table = mapping_names(), read_table()
    if options.only:
        names = options.only.split(",")
    elif options.sample:
        seed = datetime.date.today().toordinal() if options.seed is None else options.seed
        print(f"a sample of {options.sample} with --seed {seed}")
        names = random.Random(seed).sample(names, options.sample)
    if options.onnx:
        return only_onnx([it for it in names if it in table and table[it].verified], table, options.workers)
    found = try_all(names, workers=options.workers)
    lost = compare(found, table)
    print(f"{sum(entry.verified for entry in found)} of {len(found)} verified")
    whole = not (options.only or options.sample)
    if whole or options.write:
        write_table(found if whole else list((table | {entry.name: entry for entry in found}).values()))
    print("\n".join(lost), end="\n" if lost else "")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
