"""What speculation is worth: ratios to plain decoding, and tokens a step.

    python benchmarks/speculation.py costs                   microseconds a proposal, by length of text
    python benchmarks/speculation.py simulation              against executors of stated step costs
    python benchmarks/speculation.py copy build/smollm2      a copy-heavy workload through the engine
    python benchmarks/speculation.py copy M --draft D        … with another artifact as the draft model
    python benchmarks/speculation.py wall build/smollm2      wall clock against plain decoding, copy and chat

``simulation`` runs on a clock that only moves when told to, so its ratios are the same everywhere: seconds of
plain decoding over seconds with speculation. ``copy`` generates greedily and checks that the text is that of
plain decoding. ``wall`` measures in turns on prompts that no constant was chosen on, and writes its table to
benchmarks/results/ with --write. Every command prints a table, and with --json one line of JSON instead.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))  # the simulation lives with its tests

from report import write  # noqa: E402

from optpipe_runtime.speculation import (  # noqa: E402
    Ask,
    Controller,
    DraftProposer,
    FixedController,
    LayersProposer,
    NgramProposer,
    Proposer,
    Speculator,
    SuffixProposer,
    check_vocabularies,
)
from tests.runtime.speculation.simulation import COSTS, LOADS, MS, RATES, simulate  # noqa: E402

ARTICLE = (
    "The lighthouse at Cape Arden was built in 1874 after three ships were lost in one winter. Its tower is "
    "41 metres tall and was painted white until 1902, when red bands were added so that sailors could see it "
    "against the snow. The first keeper, Thomas Hale, lived there with his wife and five children for "
    "twenty-two years. He kept a diary of the weather, the ships that passed and the birds that struck the "
    "glass at night. In 1931 the lamp was changed from oil to electric light, and in 1986 the last keeper "
    "left the tower. Today a small museum in the keeper's house shows the old lamp, the diary and a "
    "model of the three lost ships."
)

CODE = """class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance = self.balance + amount
        return self.balance

    def withdraw(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance = self.balance - amount
        return self.balance
"""

COPY_HEAVY = {
    "edit": f"Repeat the following text word for word, but write 'Tom' instead of 'Thomas'.\n\n{ARTICLE}",
    "quote": f"{ARTICLE}\n\nWhich sentences of the text above speak about the keepers? "
    "Answer by quoting the sentences exactly.",
    "code": f"Add a docstring to the class and return the whole code:\n\n```python\n{CODE}```",
}

PROPOSERS: dict[str, Callable[[], Proposer]] = {"ngram": NgramProposer, "suffix": SuffixProposer}


def costs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Microseconds of a proposal of up to 8 drafts after 1 to 5 new tokens; medians."""
    rows = []
    for name, make in PROPOSERS.items():
        for length in args.lengths:
            for kind, words in (("varied", 49_152), ("repetitive", 64)):
                rows.append(
                    {
                        "proposer": name,
                        "tokens": length,
                        "text": kind,
                        "us": proposal_us(make(), length, words),
                    }
                )
    return rows


def proposal_us(proposer: Proposer, length: int, words: int) -> float:
    random_ = random.Random(0)

    def token() -> int:
        return int(words ** random_.random())  # few words are frequent, most are rare

    text = [token() for _ in range(length)]
    for _ in range(length // 500 + 2):  # long prompts are indexed over several asks
        proposer.propose([Ask(0, text, 8, length)])
    taken = []
    for _ in range(400):
        text.extend(token() for _ in range(random_.randint(1, 5)))
        begun = time.perf_counter()
        proposer.propose([Ask(0, text, 8, length)])
        taken.append(time.perf_counter() - begun)
    return round(statistics.median(taken) * 1e6, 1)


def simulation(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Speed-ups of every case, with a proposal that takes 20 µs."""
    rows = []
    for cost, seconds in COSTS.items():
        for load, phases in LOADS.items():
            plain = simulate(phases, seconds, plain=True, noise=args.noise).seconds
            row: dict[str, Any] = {"step": cost, "sequences": load}
            for name, rate in RATES.items():
                run = simulate(phases, seconds, rate=rate, noise=args.noise, ask_seconds=0.02 * MS)
                row[name] = round(plain / run.seconds, 3)
            rows.append(row)
    least = min(value for row in rows for value in row.values() if isinstance(value, float))
    print(f"the least of all: {least:.3f}", file=sys.stderr)
    return rows


def copy(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens a step and seconds, by proposer and draft length, one request at a time."""
    from optpipe_runtime.engine import Engine, EngineConfig

    rows: list[dict[str, Any]] = []
    expected: dict[str, tuple[int, ...]] = {}
    for name, controller in settings(args):
        config = EngineConfig(num_blocks=args.blocks, seed=0)
        with Engine(args.artifact, args.target, config=config) as engine:
            speculator = speculator_of(name, controller, engine, args)
            engine._loop._speculator = speculator
            for task, prompt in COPY_HEAVY.items():
                row = measured(engine, speculator, prompt, args.tokens)
                tokens = row.pop("token_ids")
                same = tokens == expected.setdefault(task, tokens)
                how = "fixed" if isinstance(controller, FixedController) else "adaptive"
                rows.append(
                    {"proposer": name, "length": how if speculator else "", "task": task, **row, "same": same}
                )
                print(rows[-1], file=sys.stderr)
    return rows


def wall(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Speed-ups of decoding one request at a time; ``speculation_wall`` says how they are measured."""
    import speculation_wall

    from optpipe_runtime.engine import Engine, EngineConfig

    options = {"activations": args.activations} if args.activations else {}
    config = EngineConfig(num_blocks=args.blocks, seed=0)
    found = {}
    with Engine(args.artifact, args.target, config=config, **options) as engine:
        makes = wall_makes(engine, args)
        for name, (prompts, params) in workloads(args).items():
            rows = speculation_wall.measure(
                engine, prompts, makes, rounds=args.rounds, tokens=args.tokens, **params
            )
            found.update(speculation_wall.parted(rows) if name == "copy" else {name: rows})
    for name, rows in found.items():
        print(f"{name}: {speculation_wall.overall(rows, list(makes))}", file=sys.stderr)
    if args.write:
        write_wall(args, list(makes), found)
    return [{"workload": name, **row} for name, rows in found.items() for row in rows]


def workloads(args: argparse.Namespace) -> dict[str, tuple[dict[str, str], dict[str, Any]]]:
    """Prompts and sampling of the workloads that were asked for."""
    from speculation_prompts import CHAT, EDITS, QUOTES

    found: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
        "copy": (COPY_HEAVY if args.tuning else {**EDITS, **QUOTES}, {"temperature": 0}),
        "chat": (CHAT, {"temperature": 0}),
        "chat, sampled": (CHAT, {"temperature": 0.8, "top_p": 0.95, "seed": 1}),
    }
    return {name: found[name] for name in args.workload or found}


def write_wall(args: argparse.Namespace, kinds: list[str], found: dict[str, list[dict[str, Any]]]) -> None:
    """Put workloads into the results; those that were not measured now stay as they are."""
    import speculation_wall

    place = HOME / "benchmarks" / "results" / "speculation-wall.json"
    facts = {
        "artifact": Path(args.artifact).resolve().name,
        "target": args.target,
        "activations": args.activations,
        "machine": args.machine,
        "kinds": kinds,
        "layers": args.layers,
    }
    result = json.loads(place.read_text()) if place.exists() else {}
    known, rounds = result.pop("workloads", {}), result.pop("rounds", {})
    if result != facts:  # of another artifact, or another machine
        known, rounds = {}, {}
    rounds |= dict.fromkeys(found, args.rounds)
    result = {**facts, "rounds": rounds, "workloads": {**known, **found}}
    place.write_text(json.dumps(result, indent=1) + "\n")
    place.with_suffix(".md").write_text(speculation_wall.page(result))


def wall_makes(engine: Any, args: argparse.Namespace) -> dict[str, Callable[[], Speculator]]:
    def maker(make: Callable[[], Proposer]) -> Callable[[], Speculator]:
        return lambda: Speculator(make(), Controller(max_drafts=args.drafts), end_tokens=engine.eos)

    found = {name: maker(make) for name, make in PROPOSERS.items()}
    if args.layers:
        executor, lender = engine._loop._runner._executor, engine._loop._scheduler
        found["layers"] = maker(lambda: LayersProposer(executor, lender, layers=args.layers))
    return found


PAGES: dict[Callable[[argparse.Namespace], list[dict[str, Any]]], tuple[str, str]] = {
    simulation: (
        "Speculation against executors of stated step costs",
        "Seconds of plain decoding over seconds with speculation, on a clock that only moves when told "
        "to, by the cost of a step, the number of sequences, and how often guesses are right.",
    ),
    copy: (
        "Tokens a step on texts that copy",
        "One request at a time, greedy; `tokens_per_step` is that of decoding, `acceptance` kept over "
        "checked drafts by place, `same` whether the text is that of plain decoding.",
    ),
}


def settings(args: argparse.Namespace) -> list[tuple[str, Controller]]:
    found: list[tuple[str, Controller]] = [("none", Controller())]
    for name in [*PROPOSERS, *(["draft"] if args.draft else [])]:
        found += [(name, Controller(max_drafts=args.drafts)), (name, FixedController(max_drafts=args.drafts))]
    return found


def speculator_of(
    name: str, controller: Controller, engine: Any, args: argparse.Namespace
) -> Speculator | None:
    if name == "none":
        return None
    proposer = draft_proposer(engine, args) if name == "draft" else PROPOSERS[name]()
    return Speculator(proposer, controller, end_tokens=engine.eos)


def draft_proposer(engine: Any, args: argparse.Namespace) -> Proposer:
    import optpipe
    from optpipe_runtime.tokenizer import load_tokenizer

    other = load_tokenizer(Path(args.draft))
    check_vocabularies(engine.tokenizer.backend.get_vocab(), other.backend.get_vocab())
    executor = optpipe.load(args.draft, target=args.target)
    return DraftProposer(executor, vocab_size=engine.vocab_size, num_blocks=args.blocks)


def measured(engine: Any, speculator: Speculator | None, prompt: str, tokens: int) -> dict[str, Any]:
    from optpipe_runtime.chat import render_chat
    from optpipe_runtime.sampling import SamplingParams

    text = render_chat(engine.tokenizer, [{"role": "user", "content": prompt}])
    ids = engine.tokenizer.encode(text, add_special_tokens=False)
    before = speculator.stats() if speculator else None
    steps = engine.stats().steps
    begun = time.perf_counter()
    output = engine.generate([ids], SamplingParams(temperature=0, max_tokens=tokens))[0]
    seconds = time.perf_counter() - begun
    prompts = -(-len(ids) // engine.config.max_num_batched_tokens)
    made = len(output.token_ids)
    row = {
        "token_ids": output.token_ids,
        "tokens": made,
        # The step that ends the prompt gives the first token; each of the others is one of decoding.
        "tokens_per_step": round((made - 1) / (engine.stats().steps - steps - prompts), 2),
        "seconds": round(seconds, 2),
        "acceptance": "",
    }
    if speculator and before:
        after = speculator.stats()
        checked = [b - a for a, b in zip(before.proposed, after.proposed, strict=True)]
        kept = [b - a for a, b in zip(before.accepted, after.accepted, strict=True)]
        row["acceptance"] = " ".join(f"{k}/{n}" for k, n in zip(kept, checked, strict=True) if n)
    return row


def processor() -> str:
    """The processor's name and how many of it, as the system says."""
    import os

    names = [
        it.split(":")[1].strip()
        for it in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in it
    ]
    return f"{names[0] if names else 'unknown'}, {len(os.sched_getaffinity(0))} cores"


def table(rows: Sequence[dict[str, Any]]) -> str:
    names = list(rows[0])
    widths = [max(len(name), *(len(str(row[name])) for row in rows)) for name in names]
    lines = [[str(it) for it in line] for line in (names, *([row[name] for name in names] for row in rows))]
    return "\n".join("  ".join(it.rjust(w) for it, w in zip(line, widths, strict=True)) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("costs")
    one.add_argument("--lengths", type=int, nargs="+", default=[512, 8192])
    one.set_defaults(run=costs)
    two = commands.add_parser("simulation")
    two.add_argument(
        "--noise", type=float, default=0.02, help="standard deviation of a step's seconds, as a share"
    )
    two.add_argument("--write", action="store_true", help="into benchmarks/results/speculation-simulation")
    two.set_defaults(run=simulation)
    three = commands.add_parser("copy")
    three.add_argument("artifact")
    three.add_argument("--target", default="auto")
    three.add_argument("--draft", help="an artifact that drafts")
    three.add_argument("--tokens", type=int, default=100)
    three.add_argument("--drafts", type=int, default=8, help="a sequence and step, at most")
    three.add_argument("--blocks", type=int, default=128)
    three.add_argument("--write", action="store_true", help="into benchmarks/results/speculation-copy")
    three.set_defaults(run=copy)
    four = commands.add_parser("wall")
    four.add_argument("artifact")
    four.add_argument("--target", default="cpu")
    four.add_argument("--activations", help="of the cpu target")
    four.add_argument("--layers", type=int, help="also draft by so many of the model's first layers")
    four.add_argument("--tokens", type=int, default=128)
    four.add_argument("--drafts", type=int, default=8, help="a sequence and step, at most")
    four.add_argument("--rounds", type=int, default=5)
    four.add_argument("--blocks", type=int, default=128)
    four.add_argument("--workload", action="append", choices=["copy", "chat", "chat, sampled"])
    four.add_argument("--tuning", action="store_true", help="on the prompts that constants are chosen on")
    four.add_argument("--machine", default=processor(), help="what the table calls this machine")
    four.add_argument("--write", action="store_true", help="into benchmarks/results/speculation-wall")
    four.set_defaults(run=wall)
    args = parser.parse_args()
    rows = args.run(args)
    print(json.dumps(rows) if args.json else table(rows))
    if args.run in PAGES and args.write:
        title, note = PAGES[args.run]
        name = args.run.__name__
        command = f"python benchmarks/speculation.py {name}{' ARTIFACT' if name == 'copy' else ''} --write"
        write(f"speculation-{name}", title, command, note, {"Figures": rows})


if __name__ == "__main__":
    main()
